//! Operators, and a node of a graph as a provider sees it before it claims it.

use std::{
    ffi::{CStr, c_int, c_void},
    ptr,
};

use ort_sys::{
    ONNXTensorElementDataType as Element, OrtGraph, OrtNode, OrtOpAttr, OrtOpAttrType,
    OrtStatusPtr, OrtTensorTypeAndShapeInfo, OrtValue, OrtValueInfo,
};

use crate::{NAME, api::Api, status::check, tensor};

/// An operator that there is a kernel for.
pub(crate) struct Operator {
    pub(crate) name: &'static CStr,
    pub(crate) domain: &'static CStr,
    /// Its first version; the kernel is for that one only.
    pub(crate) version: c_int,
    /// Names of its types, and what they are.
    pub(crate) types: &'static [(&'static CStr, Element)],
}

pub(crate) struct Node {
    node: *const OrtNode,
    inputs: Vec<*const OrtValueInfo>,
    outputs: Vec<*const OrtValueInfo>,
}

impl Node {
    /// # Safety
    /// `node` is ONNX Runtime's, and outlives this.
    pub(crate) unsafe fn new(node: *const OrtNode) -> Result<Self, OrtStatusPtr> {
        let ort = Api::get().ort;
        let mut count = 0;
        // SAFETY: the caller's.
        unsafe {
            check(((*ort).Node_GetNumInputs)(node, &mut count))?;
            let mut inputs = vec![ptr::null(); count];
            check(((*ort).Node_GetInputs)(node, inputs.as_mut_ptr(), count))?;
            check(((*ort).Node_GetNumOutputs)(node, &mut count))?;
            let mut outputs = vec![ptr::null(); count];
            check(((*ort).Node_GetOutputs)(node, outputs.as_mut_ptr(), count))?;
            Ok(Node { node, inputs, outputs })
        }
    }

    /// All nodes of a graph, in an order in which they can be computed.
    ///
    /// # Safety
    /// `graph` is ONNX Runtime's, and outlives them.
    pub(crate) unsafe fn all(graph: *const OrtGraph) -> Result<Vec<Self>, OrtStatusPtr> {
        let ort = Api::get().ort;
        let mut count = 0;
        // SAFETY: the caller's.
        unsafe {
            check(((*ort).Graph_GetNumNodes)(graph, &mut count))?;
            let mut nodes = vec![ptr::null(); count];
            check(((*ort).Graph_GetNodes)(graph, nodes.as_mut_ptr(), count))?;
            nodes.into_iter().map(|node| Node::new(node)).collect()
        }
    }

    /// Whether no other provider has it.
    pub(crate) fn is_free(&self) -> Result<bool, OrtStatusPtr> {
        let mut name = ptr::null();
        // SAFETY: ONNX Runtime's; the text lives as long as the node.
        unsafe {
            check(((*Api::get().ort).Node_GetEpName)(self.node, &mut name))?;
            Ok(name.is_null() || CStr::from_ptr(name).is_empty() || CStr::from_ptr(name) == NAME)
        }
    }

    /// As ONNX Runtime knows it.
    pub(crate) fn as_ptr(&self) -> *const OrtNode {
        self.node
    }

    /// Whether it is of this operator.
    pub(crate) fn is(&self, name: &CStr, domain: &CStr) -> Result<bool, OrtStatusPtr> {
        let ort = Api::get().ort;
        let (mut own_name, mut own_domain) = (ptr::null(), ptr::null());
        // SAFETY: ONNX Runtime's; the texts live as long as the node.
        unsafe {
            check(((*ort).Node_GetOperatorType)(self.node, &mut own_name))?;
            check(((*ort).Node_GetDomain)(self.node, &mut own_domain))?;
            Ok(CStr::from_ptr(own_name) == name && CStr::from_ptr(own_domain) == domain)
        }
    }

    fn attribute(&self, name: &CStr) -> Result<Option<*const OrtOpAttr>, OrtStatusPtr> {
        let ort = Api::get().ort;
        let mut attribute = ptr::null();
        // SAFETY: ONNX Runtime's. A missing attribute is an error in some versions, and null in others.
        unsafe {
            let found = ((*ort).Node_GetAttributeByName)(self.node, name.as_ptr(), &mut attribute);
            if !found.0.is_null() {
                ((*ort).ReleaseStatus)(found.0);
                return Ok(None);
            }
        }
        Ok((!attribute.is_null()).then_some(attribute))
    }

    pub(crate) fn has_attribute(&self, name: &CStr) -> Result<bool, OrtStatusPtr> {
        Ok(self.attribute(name)?.is_some())
    }

    /// An integer attribute; `default` where it is not set.
    pub(crate) fn int(&self, name: &CStr, default: i64) -> Result<i64, OrtStatusPtr> {
        self.scalar(name, OrtOpAttrType::ORT_OP_ATTR_INT, default)
    }

    /// A number among the attributes; `default` where it is not set.
    pub(crate) fn float(&self, name: &CStr, default: f32) -> Result<f32, OrtStatusPtr> {
        self.scalar(name, OrtOpAttrType::ORT_OP_ATTR_FLOAT, default)
    }

    /// An attribute of a kind whose values are `T`.
    fn scalar<T>(&self, name: &CStr, kind: OrtOpAttrType, default: T) -> Result<T, OrtStatusPtr> {
        let Some(attribute) = self.attribute(name)? else { return Ok(default) };
        let (mut value, mut size) = (default, 0);
        let to = ptr::from_mut(&mut value).cast::<c_void>();
        // SAFETY: ONNX Runtime's; an attribute of another kind is an error.
        check(unsafe {
            ((*Api::get().ort).ReadOpAttr)(attribute, kind, to, size_of::<T>(), &mut size)
        })?;
        Ok(value)
    }

    /// Integers among the attributes; none where they are not set.
    pub(crate) fn ints(&self, name: &CStr) -> Result<Vec<i64>, OrtStatusPtr> {
        let Some(attribute) = self.attribute(name)? else { return Ok(Vec::new()) };
        self.list(attribute, OrtOpAttrType::ORT_OP_ATTR_INTS)
    }

    /// A text among the attributes; `None` where it is not set.
    pub(crate) fn text(&self, name: &CStr) -> Result<Option<Vec<u8>>, OrtStatusPtr> {
        let Some(attribute) = self.attribute(name)? else { return Ok(None) };
        self.list(attribute, OrtOpAttrType::ORT_OP_ATTR_STRING).map(Some)
    }

    fn list<T: Copy + Default>(
        &self,
        attribute: *const OrtOpAttr,
        kind: OrtOpAttrType,
    ) -> Result<Vec<T>, OrtStatusPtr> {
        let ort = Api::get().ort;
        let mut bytes = 0;
        // SAFETY: ONNX Runtime's. Without room it fails, and says how much there has to be.
        unsafe {
            let found = ((*ort).ReadOpAttr)(attribute, kind, ptr::null_mut(), 0, &mut bytes);
            if !found.0.is_null() {
                ((*ort).ReleaseStatus)(found.0);
            }
            let mut values = vec![T::default(); bytes.div_ceil(size_of::<T>())];
            if bytes > 0 {
                let room = values.len() * size_of::<T>();
                let to = values.as_mut_ptr().cast();
                check(((*ort).ReadOpAttr)(attribute, kind, to, room, &mut bytes))?;
            }
            Ok(values)
        }
    }

    /// How many inputs it has, those that are left out among them.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// How many outputs it has, those that are left out among them.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// An output that is there.
    pub(crate) fn output(&self, index: usize) -> Option<*const OrtValueInfo> {
        self.outputs.get(index).copied().filter(|output| !output.is_null())
    }

    /// An input that is there.
    pub(crate) fn input(&self, index: usize) -> Option<*const OrtValueInfo> {
        self.inputs.get(index).copied().filter(|input| !input.is_null())
    }

    /// The integers of a constant input; `None` where it is none.
    pub(crate) fn constant_ints(&self, index: usize) -> Result<Option<Vec<i64>>, OrtStatusPtr> {
        if !self.is_int64(index)? {
            return Ok(None);
        }
        // SAFETY: ONNX Runtime's; the tensor has the type that was asked for.
        let ints = |value| unsafe { tensor::elements::<i64>(value).map(<[i64]>::to_vec) };
        self.constant(index)?.map(ints).transpose()
    }

    pub(crate) fn has_input(&self, index: usize) -> bool {
        self.input(index).is_some()
    }

    /// Whether there is any input from that one on.
    pub(crate) fn has_input_from(&self, index: usize) -> bool {
        self.inputs.iter().skip(index).any(|input| !input.is_null())
    }

    /// Whether an input never changes, and belongs to the node's own graph: kernels are not given the
    /// constants of a graph around theirs.
    pub(crate) fn is_constant(&self, index: usize) -> Result<bool, OrtStatusPtr> {
        let Some(input) = self.input(index) else { return Ok(false) };
        let ort = Api::get().ort;
        let (mut is_constant, mut is_outer) = (false, false);
        // SAFETY: ONNX Runtime's.
        unsafe {
            check(((*ort).ValueInfo_IsConstantInitializer)(input, &mut is_constant))?;
            check(((*ort).ValueInfo_IsFromOuterScope)(input, &mut is_outer))?;
        }
        Ok(is_constant && !is_outer)
    }

    /// What an input's elements are, where it is a tensor of a known type.
    pub(crate) fn element(&self, index: usize) -> Result<Option<Element>, OrtStatusPtr> {
        let Some(tensor) = self.tensor(index)? else { return Ok(None) };
        let mut element = Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        // SAFETY: ONNX Runtime's.
        check(unsafe { ((*Api::get().ort).GetTensorElementType)(tensor, &mut element) })?;
        Ok(Some(element))
    }

    /// Whether an input has integers of 64 bits.
    pub(crate) fn is_int64(&self, index: usize) -> Result<bool, OrtStatusPtr> {
        let int64 = Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        Ok(self.element(index)? == Some(int64))
    }

    /// The number of a constant input of one float; `None` where it is none.
    pub(crate) fn constant_float(&self, index: usize) -> Result<Option<f32>, OrtStatusPtr> {
        let is_float = self.element(index)? == Some(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        match self.constant(index)?.filter(|_| is_float) {
            // SAFETY: ONNX Runtime's; the tensor has the type that was asked for.
            Some(value) => match unsafe { tensor::elements::<f32>(value)? } {
                &[number] => Ok(Some(number)),
                _ => Ok(None),
            },
            None => Ok(None),
        }
    }

    /// A constant input, whose value lives as long as the graph.
    fn constant(&self, index: usize) -> Result<Option<*const OrtValue>, OrtStatusPtr> {
        let Some(input) = self.input(index) else { return Ok(None) };
        if !self.is_constant(index)? {
            return Ok(None);
        }
        let mut value = ptr::null();
        // SAFETY: ONNX Runtime's.
        check(unsafe { ((*Api::get().ort).ValueInfo_GetInitializerValue)(input, &mut value) })?;
        Ok((!value.is_null()).then_some(value))
    }

    /// The size of an input's axis, where that is known.
    pub(crate) fn dimension(
        &self,
        index: usize,
        axis: usize,
    ) -> Result<Option<usize>, OrtStatusPtr> {
        let Some(input) = self.input(index) else { return Ok(None) };
        Ok(dimensions(input)?.get(axis).copied().flatten())
    }

    /// How many axes an input has, where that is known.
    pub(crate) fn rank(&self, index: usize) -> Result<Option<usize>, OrtStatusPtr> {
        let Some(input) = self.input(index) else { return Ok(None) };
        let count = dimensions(input)?.len();
        // Without a shape there are none either.
        Ok((count > 0).then_some(count))
    }

    fn tensor(
        &self,
        index: usize,
    ) -> Result<Option<*const OrtTensorTypeAndShapeInfo>, OrtStatusPtr> {
        self.input(index).map_or(Ok(None), tensor_of)
    }
}

/// Type and shape of a value that is a tensor.
fn tensor_of(
    value: *const OrtValueInfo,
) -> Result<Option<*const OrtTensorTypeAndShapeInfo>, OrtStatusPtr> {
    let ort = Api::get().ort;
    let (mut kind, mut tensor) = (ptr::null(), ptr::null());
    // SAFETY: ONNX Runtime's; what is got belongs to the graph.
    unsafe {
        check(((*ort).GetValueInfoTypeInfo)(value, &mut kind))?;
        if kind.is_null() {
            return Ok(None);
        }
        check(((*ort).CastTypeInfoToTensorInfo)(kind, &mut tensor))?;
    }
    Ok((!tensor.is_null()).then_some(tensor))
}

/// Sizes of a value's axes, where they are known; none where it has no shape.
pub(crate) fn dimensions(value: *const OrtValueInfo) -> Result<Vec<Option<usize>>, OrtStatusPtr> {
    let Some(tensor) = tensor_of(value)? else { return Ok(Vec::new()) };
    let ort = Api::get().ort;
    let mut count = 0;
    // SAFETY: ONNX Runtime's; there is room for all sizes.
    unsafe {
        check(((*ort).GetDimensionsCount)(tensor, &mut count))?;
        let mut sizes = vec![0; count];
        check(((*ort).GetDimensions)(tensor, sizes.as_mut_ptr(), count))?;
        Ok(sizes.into_iter().map(|size| usize::try_from(size).ok()).collect())
    }
}

//! The standard operators that the model code uses, as methods of [`Value`].

use std::ops::{Add, Div, Mul, Sub};

use super::{
    graph::{Attribute, Op, Value},
    proto::DataType,
};

use Attribute::{Float, Int, Ints, Text};

/// Formula of the GELU activation (operator `Gelu`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gelu {
    /// `x/2 (1 + erf(x/sqrt 2))`.
    Exact,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    Tanh,
}

impl<'g> Value<'g> {
    fn unary(self, op: &'static str) -> Self {
        self.graph.node(Op::onnx(op), &[self], &[])
    }

    fn binary(self, op: &'static str, other: Self) -> Self {
        self.graph.node(Op::onnx(op), &[self, other], &[])
    }

    /// The same value under a name of its own.
    pub(crate) fn identity(self) -> Self {
        self.unary("Identity")
    }

    /// Element-wise square root.
    pub(crate) fn sqrt(self) -> Self {
        self.unary("Sqrt")
    }

    /// Element-wise cosine.
    pub(crate) fn cos(self) -> Self {
        self.unary("Cos")
    }

    /// Element-wise sine.
    pub(crate) fn sin(self) -> Self {
        self.unary("Sin")
    }

    /// Element-wise error function.
    pub(crate) fn erf(self) -> Self {
        self.unary("Erf")
    }

    /// Element-wise logistic function.
    pub(crate) fn sigmoid(self) -> Self {
        self.unary("Sigmoid")
    }

    /// Element-wise maximum.
    pub(crate) fn max(self, other: Self) -> Self {
        self.binary("Max", other)
    }

    /// Element-wise `self >= other`.
    pub(crate) fn greater_or_equal(self, other: Self) -> Self {
        self.binary("GreaterOrEqual", other)
    }

    /// Element-wise `self > other`.
    pub(crate) fn greater(self, other: Self) -> Self {
        self.binary("Greater", other)
    }

    /// Element-wise `self < other`.
    pub(crate) fn less(self, other: Self) -> Self {
        self.binary("Less", other)
    }

    /// Element-wise `yes` where self is true, else `no`.
    pub(crate) fn select(self, yes: Self, no: Self) -> Self {
        self.graph.node(Op::onnx("Where"), &[self, yes, no], &[])
    }

    /// Element-wise minimum.
    pub(crate) fn min(self, other: Self) -> Self {
        self.binary("Min", other)
    }

    /// Element-wise absolute value.
    pub(crate) fn abs(self) -> Self {
        self.unary("Abs")
    }

    /// Element-wise largest integer that is not above.
    pub(crate) fn floor(self) -> Self {
        self.unary("Floor")
    }

    /// Element-wise smallest integer that is not below.
    pub(crate) fn ceil(self) -> Self {
        self.unary("Ceil")
    }

    /// Element-wise nearest integer, halves to the even one.
    pub(crate) fn round(self) -> Self {
        self.unary("Round")
    }

    /// Element-wise nearest value from `least` to `most`.
    pub(crate) fn clip(self, least: Self, most: Self) -> Self {
        self.graph.node(Op::onnx("Clip"), &[self, least, most], &[])
    }

    /// Running sum along an axis, from front to back.
    pub(crate) fn running_sum(self, axis: i64) -> Self {
        self.binary("CumSum", self.graph.ints(&[axis], &[]))
    }

    /// Place of the largest value of a vector, the first of several, as an int64 scalar.
    pub(crate) fn place_of_max(self) -> Self {
        let attributes = [("axis", Int(0)), ("keepdims", Int(0))];
        self.graph.node(Op::onnx("ArgMax"), &[self], &attributes)
    }

    /// self repeated to a computed shape.
    pub(crate) fn expand(self, shape: Self) -> Self {
        self.binary("Expand", shape)
    }

    /// [first, ..] as [first, values].
    pub(crate) fn flatten(self) -> Self {
        self.graph.node(Op::onnx("Flatten"), &[self], &[("axis", Int(1))])
    }

    /// Elements 0..`end`, int64 [1], of one axis.
    pub(crate) fn take(self, axis: i64, end: Self) -> Self {
        let [start, axis] = [0, axis].map(|i| self.graph.int_vector(&[i]));
        self.graph.node(Op::onnx("Slice"), &[self, start, end, axis], &[])
    }

    /// Zeros around the elements of one axis: `counts`, int64 [2], are how many before and behind.
    pub(crate) fn pad(self, axis: i64, counts: Self) -> Self {
        let axes = self.graph.int_vector(&[axis]);
        let zero = self.graph.omitted();
        self.graph.node(Op::onnx("Pad"), &[self, counts, zero, axes], &[])
    }

    /// Element-wise `self == other`.
    pub(crate) fn equal(self, other: Self) -> Self {
        self.binary("Equal", other)
    }

    /// Places [n, rank] of the elements that are true, in order.
    pub(crate) fn places(self) -> Self {
        self.unary("NonZero").transpose(&[1, 0])
    }

    /// self with `rows` [n, ..] in `places` [n, rank].
    pub(crate) fn with_rows(self, places: Self, rows: Self) -> Self {
        self.graph.node(Op::onnx("ScatterND"), &[self, places, rows], &[])
    }

    /// Element-wise logical and.
    pub(crate) fn and(self, other: Self) -> Self {
        self.binary("And", other)
    }

    /// Matrix product, broadcast over leading dimensions.
    pub(crate) fn matmul(self, other: Self) -> Self {
        self.binary("MatMul", other)
    }

    /// `self * weight^T + bias` for self [n, in], weight [out, in], bias [out].
    pub(crate) fn linear(self, weight: Self, bias: Option<Self>) -> Self {
        let inputs: Vec<_> = [self, weight].into_iter().chain(bias).collect();
        self.graph.node(Op::onnx("Gemm"), &inputs, &[("transB", Int(1))])
    }

    /// The largest values along the last dimension, in order, and their places as int64.
    pub(crate) fn top(self, count: usize) -> [Self; 2] {
        let count = self.graph.int_vector(&[count as i64]);
        self.graph.node_with_outputs(Op::onnx("TopK"), &[self, count], &[("axis", Int(-1))])
    }

    /// Element-wise GELU.
    pub(crate) fn gelu(self, formula: Gelu) -> Self {
        let approximate = match formula {
            Gelu::Exact => "none",
            Gelu::Tanh => "tanh",
        };
        self.graph.node(Op::onnx("Gelu"), &[self], &[("approximate", Text(approximate))])
    }

    /// Softmax over the last dimension.
    pub(crate) fn softmax(self) -> Self {
        self.graph.node(Op::onnx("Softmax"), &[self], &[("axis", Int(-1))])
    }

    /// Layer normalisation over the last dimension.
    pub(crate) fn layer_norm(self, weight: Self, bias: Self, epsilon: f32) -> Self {
        self.graph.node(
            Op::onnx("LayerNormalization"),
            &[self, weight, bias],
            &[("axis", Int(-1)), ("epsilon", Float(epsilon))],
        )
    }

    /// Root-mean-square normalisation over the last dimension, spelled out in the operators that
    /// every runtime has; ONNX Runtime fuses them into one when it loads the graph.
    pub(crate) fn rms_norm(self, weight: Self, epsilon: f32) -> Self {
        let two = self.graph.float(2.0);
        let x = self.to_exact();
        let mean_square = x.binary("Pow", two).reduce("ReduceMean", -1);
        let rms = (mean_square + self.graph.float(epsilon)).sqrt();
        (x / rms).to_graph_floats() * weight
    }

    fn reduce(self, op: &'static str, axis: i64) -> Self {
        let axes = self.graph.int_vector(&[axis]);
        self.graph.node(Op::onnx(op), &[self, axes], &[("keepdims", Int(1))])
    }

    /// Sum over one axis, which is kept with size 1.
    pub(crate) fn sum(self, axis: i64) -> Self {
        self.reduce("ReduceSum", axis)
    }

    /// Sum of all elements, as a scalar.
    pub(crate) fn sum_all(self) -> Self {
        self.graph.node(Op::onnx("ReduceSum"), &[self], &[("keepdims", Int(0))])
    }

    /// Largest of all elements, as a scalar.
    pub(crate) fn max_all(self) -> Self {
        self.graph.node(Op::onnx("ReduceMax"), &[self], &[("keepdims", Int(0))])
    }

    /// Smallest of all elements, as a scalar.
    pub(crate) fn min_all(self) -> Self {
        self.graph.node(Op::onnx("ReduceMin"), &[self], &[("keepdims", Int(0))])
    }

    /// Integers, but none above `limit`. Some providers have no `Min`.
    pub(crate) fn at_most(self, limit: Self) -> Self {
        self - (self - limit).max(self.graph.ints(&[0], &[]))
    }

    /// Absolute value of float32. Some providers have no `Abs`.
    pub(crate) fn magnitude(self) -> Self {
        self.max(self.graph.float(0.0) - self)
    }

    /// Remainder of integers that are not negative. Some providers have no `Mod` of integers.
    pub(crate) fn modulo(self, other: Self) -> Self {
        self - self / other * other
    }

    /// Rows (or slices of another axis) by index.
    pub(crate) fn gather(self, indices: Self, axis: i64) -> Self {
        self.graph.node(Op::onnx("Gather"), &[self, indices], &[("axis", Int(axis))])
    }

    /// Dimensions `start..end` of the shape, as an int64 vector.
    pub(crate) fn dims(self, start: i64, end: i64) -> Self {
        self.graph.node(Op::onnx("Shape"), &[self], &[("start", Int(start)), ("end", Int(end))])
    }

    /// One dimension of the shape, as an int64 scalar.
    pub(crate) fn dim(self, axis: i64) -> Self {
        self.dims(axis, axis + 1).squeeze(&[0])
    }

    /// Reshape to constant dimensions; 0 keeps a dimension, -1 is what is left.
    pub(crate) fn reshape(self, shape: &[i64]) -> Self {
        self.reshape_to(self.graph.int_vector(shape))
    }

    /// Reshape to computed dimensions.
    pub(crate) fn reshape_to(self, shape: Self) -> Self {
        self.binary("Reshape", shape)
    }

    /// Reshape to scalars, where a size of 0 is just that.
    pub(crate) fn reshape_to_sizes(self, sizes: &[Self]) -> Self {
        let shape = self.graph.vector(sizes);
        self.graph.node(Op::onnx("Reshape"), &[self, shape], &[("allowzero", Int(1))])
    }

    /// Inserts dimensions of size 1.
    pub(crate) fn unsqueeze(self, axes: &[i64]) -> Self {
        self.binary("Unsqueeze", self.graph.int_vector(axes))
    }

    /// Removes dimensions of size 1.
    pub(crate) fn squeeze(self, axes: &[i64]) -> Self {
        self.binary("Squeeze", self.graph.int_vector(axes))
    }

    /// Reorders the dimensions.
    pub(crate) fn transpose(self, order: &[i64]) -> Self {
        self.graph.node(Op::onnx("Transpose"), &[self], &[("perm", Ints(order.to_vec()))])
    }

    /// Elements `start..end` of one axis; negative counts from the end.
    pub(crate) fn slice(self, axis: i64, start: i64, end: i64) -> Self {
        let [start, end, axis] = [start, end, axis].map(|i| self.graph.int_vector(&[i]));
        self.graph.node(Op::onnx("Slice"), &[self, start, end, axis], &[])
    }

    /// Elements from `start` to the end of one axis; negative counts from the end.
    pub(crate) fn slice_from(self, axis: i64, start: i64) -> Self {
        self.slice(axis, start, i64::MAX)
    }

    /// Elements from a computed start, int64 [1], to the end of one axis.
    pub(crate) fn slice_at(self, axis: i64, start: Self) -> Self {
        let [end, axis] = [i64::MAX, axis].map(|i| self.graph.int_vector(&[i]));
        self.graph.node(Op::onnx("Slice"), &[self, start, end, axis], &[])
    }

    /// Joins self and `others` along an axis.
    pub(crate) fn concat(self, others: &[Self], axis: i64) -> Self {
        let inputs: Vec<_> = [self].into_iter().chain(others.iter().copied()).collect();
        self.graph.node(Op::onnx("Concat"), &inputs, &[("axis", Int(axis))])
    }

    /// Splits an axis into parts of these sizes.
    pub(crate) fn split_into<const N: usize>(self, sizes: [usize; N], axis: i64) -> [Self; N] {
        let sizes = self.graph.int_vector(&sizes.map(|size| size as i64));
        self.graph.node_with_outputs(Op::onnx("Split"), &[self, sizes], &[("axis", Int(axis))])
    }

    /// Splits an axis into `N` equal parts.
    pub(crate) fn split<const N: usize>(self, axis: i64) -> [Self; N] {
        self.graph.node_with_outputs(
            Op::onnx("Split"),
            &[self],
            &[("axis", Int(axis)), ("num_outputs", Int(N as i64))],
        )
    }

    /// The integers `0..self` for an int64 scalar self.
    pub(crate) fn range(self) -> Self {
        let [zero, one] = [0, 1].map(|i| self.graph.ints(&[i], &[]));
        self.graph.node(Op::onnx("Range"), &[zero, self, one], &[])
    }

    /// The integers `start..self` for int64 scalars.
    pub(crate) fn range_from(self, start: Self) -> Self {
        let one = self.graph.ints(&[1], &[]);
        self.graph.node(Op::onnx("Range"), &[start, self, one], &[])
    }

    fn cast(self, to: DataType) -> Self {
        self.graph.node(Op::onnx("Cast"), &[self], &[("to", Int(to as i64))])
    }

    /// Converts to float32.
    pub(crate) fn to_f32(self) -> Self {
        self.cast(DataType::Float)
    }

    /// Converts float32 to the graph's floats.
    pub(crate) fn to_graph_floats(self) -> Self {
        if self.graph.is_half() { self.cast(DataType::Float16) } else { self }
    }

    /// Converts uint8 to float32. ONNX Runtime computes this on all threads, and `Cast` on one.
    pub(crate) fn bytes_to_f32(self) -> Self {
        self.binary("DequantizeLinear", self.graph.float(1.0))
    }

    /// `self / scale + zero`, rounded and cut off to the type of `zero`.
    pub(crate) fn quantize(self, scale: Self, zero: Self) -> Self {
        self.graph.node(Op::onnx("QuantizeLinear"), &[self, scale, zero], &[])
    }

    /// Converts the graph's floats to float32, for what needs the accuracy.
    pub(crate) fn to_exact(self) -> Self {
        if self.graph.is_half() { self.to_f32() } else { self }
    }

    /// Converts to float64.
    pub(crate) fn to_f64(self) -> Self {
        self.cast(DataType::Double)
    }

    /// Converts to uint8.
    pub(crate) fn to_u8(self) -> Self {
        self.cast(DataType::Uint8)
    }

    /// Converts to int64.
    pub(crate) fn to_i64(self) -> Self {
        self.cast(DataType::Int64)
    }

    /// Converts to bool: whether it is not zero.
    pub(crate) fn to_bool(self) -> Self {
        self.cast(DataType::Bool)
    }

    /// Converts to int32.
    pub(crate) fn to_i32(self) -> Self {
        self.cast(DataType::Int32)
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:literal) => {
        impl<'g> $trait for Value<'g> {
            type Output = Self;

            fn $method(self, other: Self) -> Self {
                self.binary($op, other)
            }
        }
    };
}

operator!(Add, add, "Add");
operator!(Sub, sub, "Sub");
operator!(Mul, mul, "Mul");
operator!(Div, div, "Div");

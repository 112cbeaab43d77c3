//! The nodes of a graph, and which value goes where.

use std::{collections::HashMap, ffi::CStr};

use ort_sys::{OrtStatusPtr, OrtValueInfo};

use crate::{api::Api, node::Node, status::check};

pub(super) type Value = *const OrtValueInfo;

pub(super) const ONNX: &CStr = c"";
pub(super) const MICROSOFT: &CStr = c"com.microsoft";

/// Which node makes each value, and which ones read it.
pub(super) struct Graph<'a> {
    pub(super) nodes: &'a [Node],
    producers: HashMap<Value, usize>,
    pub(super) consumers: HashMap<Value, Vec<usize>>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(nodes: &'a [Node]) -> Self {
        let mut graph = Graph { nodes, producers: HashMap::new(), consumers: HashMap::new() };
        for (index, node) in nodes.iter().enumerate() {
            for output in (0..node.outputs()).filter_map(|output| node.output(output)) {
                graph.producers.insert(output, index);
            }
            for input in (0..node.inputs()).filter_map(|input| node.input(input)) {
                graph.consumers.entry(input).or_default().push(index);
            }
        }
        graph
    }

    /// A node that makes a value, if it is of this operator.
    pub(super) fn producer(
        &self,
        value: Option<Value>,
        name: &CStr,
        domain: &CStr,
    ) -> Result<Option<usize>, OrtStatusPtr> {
        let index = value.and_then(|value| self.producers.get(&value).copied());
        self.if_is(index, name, domain)
    }

    /// The only node that reads a value which is no output of the graph, if it is of this operator.
    pub(super) fn only_consumer(
        &self,
        value: Option<Value>,
        name: &CStr,
        domain: &CStr,
    ) -> Result<Option<usize>, OrtStatusPtr> {
        let consumers = value.and_then(|value| self.consumers.get(&value));
        let &[index] = consumers.map_or(&[][..], |all| all) else { return Ok(None) };
        if !self.is_read_only_by(value, &[index])? {
            return Ok(None);
        }
        self.if_is(Some(index), name, domain)
    }

    fn if_is(
        &self,
        index: Option<usize>,
        name: &CStr,
        domain: &CStr,
    ) -> Result<Option<usize>, OrtStatusPtr> {
        let Some(index) = index else { return Ok(None) };
        Ok(self.nodes[index].is(name, domain)?.then_some(index))
    }

    /// Whether nothing but these nodes reads a value: no other node, no graph within a node, and not
    /// who runs the graph.
    pub(super) fn is_read_only_by(
        &self,
        value: Option<Value>,
        nodes: &[usize],
    ) -> Result<bool, OrtStatusPtr> {
        let Some(value) = value else { return Ok(true) };
        let ort = Api::get().ort;
        let (mut count, mut is_output) = (0, false);
        // SAFETY: ONNX Runtime's.
        unsafe {
            check(((*ort).ValueInfo_GetValueNumConsumers)(value, &mut count))?;
            check(((*ort).ValueInfo_IsGraphOutput)(value, &mut is_output))?;
        }
        let consumers = self.consumers.get(&value).map_or(&[][..], |all| all);
        let are_known = consumers.iter().all(|consumer| nodes.contains(consumer));
        Ok(!is_output && count == consumers.len() && are_known)
    }

    /// Whether anything reads a value.
    pub(super) fn is_read(&self, value: Value) -> Result<bool, OrtStatusPtr> {
        Ok(!self.is_read_only_by(Some(value), &[])?)
    }
}

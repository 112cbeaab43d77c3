//! `GroupQueryAttention`, with the norms and the rotation of its queries and keys where these are nodes of
//! their own. (Operators: ONNX Runtime's `docs/ContribOperators.md`.)

use std::ptr;

use lfm2vl_kernels::{GroupedAttention, HeadNorms, Instructions, Rotary, Threads};
use ort_sys::{ONNXTensorElementDataType as Element, OrtStatusPtr, OrtValue};

use super::{
    Group, Work,
    graph::{Graph, MICROSOFT, ONNX, Value},
    some,
    values::Values,
};
use crate::{node::dimensions, status::failure, tensor};

/// The operator's inputs.
const QUERY: usize = 0;
const KEY: usize = 1;
const PAST_KEY: usize = 3;
/// Cosines, sines and positions, if it rotates; what comes from the last one on is not known here.
const COS: usize = 7;
const POSITIONS: usize = 9;

/// What a group of attention is.
///
/// It reads queries, keys, values, earlier keys and values, tokens of each sequence less one, and tokens of
/// the longest one; weights of the norms of queries and keys; cosines and sines; and positions. It gives
/// outputs, keys and values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    scale: f32,
    /// What the norms add to the mean of squares, if there are norms.
    epsilon: Option<f32>,
    rotation: Rotation,
}

/// Where the positions of new tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotation {
    None,
    /// From how many tokens there are.
    Counted,
    /// An input says.
    Given,
}

/// The group around an attention.
pub(super) fn find(graph: &Graph<'_>, index: usize) -> Result<Option<Group>, OrtStatusPtr> {
    let node = &graph.nodes[index];
    if !node.is(c"GroupQueryAttention", MICROSOFT)? {
        return Ok(None);
    }
    let does_rotate = node.int(c"do_rotary", 0)? == 1;
    let zeros = [c"rotary_interleaved", c"sliding_window_cache", c"qk_output"];
    let is_plain = zeros
        .iter()
        .try_fold(true, |all, name| Ok::<_, OrtStatusPtr>(all & (node.int(name, 0)? == 0)))?
        && node.int(c"local_window_size", -1)? == -1
        && node.int(c"smooth_softmax", 0)? < 1
        && node.int(c"causal", 1)? == 1
        && node.float(c"softcap", 0.0)? == 0.0
        && node.int(c"kv_cache_bit_width", 0)? == 0
        && !node.has_input_from(if does_rotate { POSITIONS } else { COS })
        && node.outputs() == 3
        && [QUERY, PAST_KEY].iter().try_fold(true, |all, &input| {
            let is_float =
                node.element(input)? == Some(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
            Ok::<_, OrtStatusPtr>(all & is_float)
        })?;
    let sizes = [node.int(c"num_heads", 0)?, node.int(c"kv_num_heads", 0)?];
    let [heads, kv_heads] = sizes.map(|size| usize::try_from(size).unwrap_or(0));
    let head_size = node.dimension(PAST_KEY, 3)?.unwrap_or(0);
    if !is_plain || kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_size < 2 {
        return Ok(None);
    }
    let mut inputs = Vec::new();
    for input in 0..COS {
        inputs.push(some!(node.input(input)));
    }
    let mut outputs = Vec::new();
    for output in 0..3 {
        let output = some!(node.output(output));
        if !graph.is_read(output)? {
            return Ok(None);
        }
        outputs.push(output);
    }
    let mut attention = Attention {
        heads,
        kv_heads,
        head_size,
        scale: node.float(c"scale", 0.0)?,
        epsilon: None,
        rotation: Rotation::None,
    };
    let mut nodes = vec![index];
    let mut tables = Vec::new();
    if does_rotate {
        attention.rotation = Rotation::Counted;
        tables.extend([some!(node.input(COS)), some!(node.input(COS + 1))]);
    } else if let [Some(query), Some(key)] =
        [rotated(graph, inputs[QUERY], heads)?, rotated(graph, inputs[KEY], kv_heads)?]
        && query.tables == key.tables
    {
        attention.rotation = Rotation::Given;
        (inputs[QUERY], inputs[KEY]) = (query.of, key.of);
        tables.extend(query.tables);
        nodes.extend([query.node, key.node]);
    }
    let half = Some(head_size / 2);
    if attention.rotation != Rotation::None
        && (!head_size.is_multiple_of(2) || dimensions(tables[0])?.last() != Some(&half))
    {
        return Ok(None);
    }
    if let [Some(query), Some(key)] =
        [normed(graph, inputs[QUERY], head_size)?, normed(graph, inputs[KEY], head_size)?]
        && query.epsilon == key.epsilon
    {
        attention.epsilon = Some(query.epsilon);
        (inputs[QUERY], inputs[KEY]) = (query.of, key.of);
        inputs.extend([query.weight, key.weight]);
        nodes.extend(query.nodes);
        nodes.extend(key.nodes);
    }
    // What is computed on the way is not to be seen elsewhere.
    for &inner in &nodes[1..] {
        let inner = &graph.nodes[inner];
        for output in (0..inner.outputs()).filter_map(|output| inner.output(output)) {
            if !graph.is_read_only_by(Some(output), &nodes)? {
                return Ok(None);
            }
        }
    }
    inputs.extend(tables);
    Group::new(Work::Attention(attention), &inputs, &outputs, nodes).map(Some)
}

/// A rotation of heads: of which value, and by which cosines, sines and positions.
struct Rotated {
    of: Value,
    tables: [Value; 3],
    node: usize,
}

fn rotated(graph: &Graph<'_>, value: Value, heads: usize) -> Result<Option<Rotated>, OrtStatusPtr> {
    let index = some!(graph.producer(Some(value), c"RotaryEmbedding", MICROSOFT)?);
    let node = &graph.nodes[index];
    let zeros = [c"interleaved", c"rotary_embedding_dim", c"is_packed_batching"];
    let is_plain = zeros
        .iter()
        .try_fold(true, |all, name| Ok::<_, OrtStatusPtr>(all & (node.int(name, 0)? == 0)))?
        && node.int(c"num_heads", 0)? == heads as i64
        && node.float(c"scale", 1.0)? == 1.0
        // Of four axes, heads come before tokens.
        && node.rank(0)? == Some(3);
    if !is_plain {
        return Ok(None);
    }
    let [of, positions, cos, sin] = [0, 1, 2, 3].map(|input| node.input(input));
    let tables = [some!(cos), some!(sin), some!(positions)];
    Ok(Some(Rotated { of: some!(of), tables, node: index }))
}

/// A norm of heads: of which value, and with which weight.
struct Normed {
    of: Value,
    weight: Value,
    epsilon: f32,
    nodes: Vec<usize>,
}

/// The norm of each head between two changes of shape, as one node or as its parts.
fn normed(graph: &Graph<'_>, value: Value, size: usize) -> Result<Option<Normed>, OrtStatusPtr> {
    let after = some!(graph.producer(Some(value), c"Reshape", ONNX)?);
    let result = graph.nodes[after].input(0);
    let (norm, of_norm) = match graph.producer(result, c"SimplifiedLayerNormalization", ONNX)? {
        Some(index) => (some!(one_norm(graph, index)?), vec![index]),
        None => some!(norm_of_parts(graph, result)?),
    };
    let (x, weight, epsilon) = norm;
    let before = some!(graph.producer(Some(x), c"Reshape", ONNX)?);
    let of = some!(graph.nodes[before].input(0));
    if dimensions(weight)? != [Some(size)] {
        return Ok(None);
    }
    let nodes = [vec![before], of_norm, vec![after]].concat();
    Ok(Some(Normed { of, weight, epsilon, nodes }))
}

type Norm = (Value, Value, f32);

fn one_norm(graph: &Graph<'_>, index: usize) -> Result<Option<Norm>, OrtStatusPtr> {
    let node = &graph.nodes[index];
    if node.int(c"axis", -1)? != -1 {
        return Ok(None);
    }
    let epsilon = node.float(c"epsilon", 1e-5)?;
    Ok(Some((some!(node.input(0)), some!(node.input(1)), epsilon)))
}

/// `x / sqrt(mean(x^2) + epsilon) * weight`.
fn norm_of_parts(
    graph: &Graph<'_>,
    result: Option<Value>,
) -> Result<Option<(Norm, Vec<usize>)>, OrtStatusPtr> {
    let weighted = some!(graph.producer(result, c"Mul", ONNX)?);
    let divided = some!(graph.producer(graph.nodes[weighted].input(0), c"Div", ONNX)?);
    let root = some!(graph.producer(graph.nodes[divided].input(1), c"Sqrt", ONNX)?);
    let sum = some!(graph.producer(graph.nodes[root].input(0), c"Add", ONNX)?);
    let mean = some!(graph.producer(graph.nodes[sum].input(0), c"ReduceMean", ONNX)?);
    let square = some!(graph.producer(graph.nodes[mean].input(0), c"Pow", ONNX)?);
    let x = some!(graph.nodes[square].input(0));
    let epsilon = some!(graph.nodes[sum].constant_float(1)?);
    let is_norm = graph.nodes[divided].input(0) == Some(x)
        && graph.nodes[square].constant_float(1)? == Some(2.0)
        && graph.nodes[mean].int(c"keepdims", 1)? == 1
        && graph.nodes[mean].constant_ints(1)?.as_deref() == Some(&[-1]);
    if !is_norm {
        return Ok(None);
    }
    let weight = some!(graph.nodes[weighted].input(1));
    let nodes = vec![square, mean, sum, root, divided, weighted];
    Ok(Some(((x, weight, epsilon), nodes)))
}

impl Attention {
    /// Computes it.
    ///
    /// # Safety
    /// The values are those of the group, in the order of the type's description.
    pub(super) unsafe fn compute(
        &self,
        instructions: Instructions,
        values: &Values<'_>,
    ) -> Result<(), OrtStatusPtr> {
        let &Attention { heads, kv_heads, head_size, .. } = self;
        // SAFETY: ONNX Runtime's; tensors are of the types that the operator has.
        unsafe {
            let [query, key, value] = [values.input(0)?, values.input(1)?, values.input(2)?];
            let shape = tensor::dimensions(value)?;
            let past = Past::of([values.input(3)?, values.input(4)?])?;
            let lasts: &[i32] = tensor::elements(values.input(5)?)?;
            let total: &[i32] = tensor::elements(values.input(6)?)?;
            let wrong = || {
                let past = past.shape;
                failure(format!(
                    "attention of {shape:?} to {past:?}, {lasts:?} {total:?}: {self:?}"
                ))
            };
            let &[batch, tokens, width] = &shape[..] else { return Err(wrong()) };
            let new = [query, key, value].map(|value| tensor::elements::<f32>(value));
            let [query, key, value] = new;
            let new = [query?, key?, value?];
            let count = batch * tokens * head_size;
            if past.shape[..2] != [batch, kv_heads]
                || past.shape[3] != head_size
                || width != kv_heads * head_size
                || new[0].len() != count * heads
                || new[1].len() != count * kv_heads
            {
                return Err(wrong());
            }
            let (Some(lengths), &[total]) = (past_lengths(lasts, total, tokens), total) else {
                return Err(wrong());
            };
            let capacity = past.shape[2].max(usize::try_from(total).unwrap_or(0));
            let fits = |&length: &usize| length + tokens <= capacity;
            if lengths.len() != batch
                || !lengths.iter().all(fits)
                || lengths.iter().any(|&length| length > past.shape[2])
            {
                return Err(wrong());
            }
            let mut others = 7..;
            let mut other = || values.input(others.next().unwrap_or_default());
            let norms = match self.epsilon {
                None => None,
                Some(epsilon) => {
                    let [query, key] = [tensor::elements(other()?)?, tensor::elements(other()?)?];
                    Some(HeadNorms { query, key, epsilon })
                }
            };
            let rows: Vec<usize>;
            let rotary = match self.rotation {
                Rotation::None => None,
                rotation => {
                    let [cos, sin] = [tensor::elements(other()?)?, tensor::elements(other()?)?];
                    rows = match rotation {
                        Rotation::Given => positions(tensor::elements(other()?)?, batch, tokens),
                        _ => lengths.iter().flat_map(|&past| past..past + tokens).collect(),
                    };
                    let there = cos.len().min(sin.len()) / (head_size / 2);
                    if rows.len() != batch * tokens || rows.iter().any(|&row| row >= there) {
                        return Err(failure(
                            "attention at positions that no cosines are there for",
                        ));
                    }
                    Some(Rotary { cos, sin, rows: &rows })
                }
            };
            let present = [batch, kv_heads, capacity, head_size];
            let output = values.output(0, &[batch, tokens, heads * head_size])?;
            let mut caches = [values.output(1, &present)?, values.output(2, &present)?];
            let threads = values.threads();
            for (from, into) in past.data.iter().zip(&mut caches) {
                past.copy(*from, into, [capacity, tokens], &lengths, &threads);
            }
            let [keys, values] = caches;
            let scale = match self.scale {
                0.0 => 1.0 / (head_size as f32).sqrt(),
                scale => scale,
            };
            GroupedAttention {
                batch,
                tokens,
                heads,
                kv_heads,
                head_size,
                capacity,
                scale,
                norms,
                rotary,
            }
            .run(instructions, new, &lengths, keys, values, output, &threads);
        }
        Ok(())
    }
}

/// Earlier keys and values, which may be in the memory of the new ones.
struct Past {
    shape: [usize; 4],
    data: [*const f32; 2],
}

impl Past {
    unsafe fn of(values: [*const OrtValue; 2]) -> Result<Self, OrtStatusPtr> {
        // SAFETY: the caller's: tensors of floats.
        unsafe {
            let shapes = [tensor::dimensions(values[0])?, tensor::dimensions(values[1])?];
            let shape = <[usize; 4]>::try_from(&shapes[0][..]);
            let Some(shape) = shape.ok().filter(|_| shapes[0] == shapes[1]) else {
                return Err(failure(format!("attention after {shapes:?}")));
            };
            Ok(Past { shape, data: [tensor::address(values[0])?, tensor::address(values[1])?] })
        }
    }

    /// Copies the tokens that there are of each sequence, and writes zeros behind the new ones, unless both
    /// caches are the same memory (and so of the same size).
    fn copy(
        &self,
        from: *const f32,
        into: &mut [f32],
        [capacity, tokens]: [usize; 2],
        lengths: &[usize],
        threads: &dyn Threads,
    ) {
        let [batch, heads, own, size] = self.shape;
        if ptr::eq(from, into.as_ptr()) {
            return;
        }
        let [from, into] = [from.expose_provenance(), into.as_mut_ptr().expose_provenance()];
        threads.run(batch * heads, &|head| {
            let start = |room: usize| head * room * size * size_of::<f32>();
            let from = ptr::with_exposed_provenance::<f32>(from + start(own));
            let into = ptr::with_exposed_provenance_mut::<f32>(into + start(capacity));
            let length = lengths[head / heads];
            let end = length + tokens;
            // SAFETY: both have room for the tokens of this head, and nobody else writes these.
            unsafe {
                into.copy_from_nonoverlapping(from, length * size);
                into.add(end * size).write_bytes(0, (capacity - end) * size);
            }
        });
    }
}

/// Earlier tokens of each sequence. In a first prompt there are none, even if it is shorter than others.
fn past_lengths(lasts: &[i32], total: &[i32], tokens: usize) -> Option<Vec<usize>> {
    let is_first = matches!(total, &[total] if usize::try_from(total) == Ok(tokens));
    let past = |&last: &i32| match is_first {
        true => Some(0),
        false => usize::try_from(last).ok()?.checked_add(1)?.checked_sub(tokens),
    };
    lasts.iter().map(past).collect()
}

/// Rows of the tables for new tokens: one each, or where a single one is given, in each sequence from there
/// on.
fn positions(given: &[i64], batch: usize, tokens: usize) -> Vec<usize> {
    let row = |position: i64| usize::try_from(position).unwrap_or(usize::MAX);
    match given {
        &[first] if batch * tokens > 1 => {
            (0..batch * tokens).map(|i| row(first).saturating_add(i % tokens)).collect()
        }
        _ => given.iter().map(|&position| row(position)).collect(),
    }
}

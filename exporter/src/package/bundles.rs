//! Which precisions of the graphs go well together.

use lfm2vl_graphs::{Bundle, Precision};

/// For each kind of graph, precisions in the order in which they are recommended. The decoder is
/// read whole for every token, so that fewer bits pay; vision has 8 bits in q4, too, unless a recipe
/// says otherwise.
const DECODER: [Precision; 5] =
    [Precision::Q4, Precision::Q8, Precision::Fp32, Precision::Q4F16, Precision::Fp16];
const VISION: [Precision; 5] =
    [Precision::Q8, Precision::Q4, Precision::Fp32, Precision::Q4F16, Precision::Fp16];

/// The recommended set, then each precision alone.
pub(super) fn recommended(built: &[Precision]) -> Vec<Bundle> {
    let first = |order: [Precision; 5]| order.into_iter().find(|p| built.contains(p));
    let mixed = match (first(VISION), first(DECODER)) {
        (Some(vision), Some(decoder)) if built.len() > 1 => {
            Some(Bundle { name: "recommended".to_owned(), vision, embedding: decoder, decoder })
        }
        _ => None,
    };
    let alone = built.iter().map(|&precision| Bundle {
        name: precision.to_string(),
        vision: precision,
        embedding: precision,
        decoder: precision,
    });
    mixed.into_iter().chain(alone).collect()
}

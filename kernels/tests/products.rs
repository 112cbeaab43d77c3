//! Products of all instructions against a plain sum in double precision, and against each other.

use std::num::NonZero;

use lfm2vl_kernels::{Bits, BlockWeights, Instructions, PackedWeights, Scoped, Serial, Threads};
use proptest::prelude::*;

/// Weights that own their parts.
#[derive(Debug, Clone)]
struct Weights {
    outputs: usize,
    inputs: usize,
    bits: Bits,
    block_size: usize,
    values: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Option<Vec<u8>>,
}

/// A generator that is the same everywhere (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    /// About normal.
    fn number(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum()
    }
}

impl Weights {
    fn random(shape: Shape, random: &mut Random) -> Self {
        let Shape { outputs, inputs, bits, block_size, has_zero_points, .. } = shape;
        let blocks = inputs.div_ceil(block_size);
        let bytes = |count: usize, random: &mut Random| (0..count).map(|_| random.byte()).collect();
        let values = bytes(outputs * blocks * block_size * bits.get() / 8, random);
        let zero_points = outputs * (blocks * bits.get()).div_ceil(8);
        Weights {
            outputs,
            inputs,
            bits,
            block_size,
            values,
            scales: (0..outputs * blocks)
                .map(|_| random.number() * 10f32.powi(random.byte() as i32 % shape.decades))
                .map(|scale| if shape.has_bf16_scales { upper_half(scale) } else { scale })
                .collect(),
            zero_points: has_zero_points.then(|| bytes(zero_points, random)),
        }
    }

    fn view(&self) -> BlockWeights<'_> {
        BlockWeights {
            outputs: self.outputs,
            inputs: self.inputs,
            bits: self.bits,
            block_size: self.block_size,
            values: &self.values,
            scales: &self.scales,
            zero_points: self.zero_points.as_deref(),
        }
    }

    /// As the operator's documentation says it.
    fn weight(&self, output: usize, input: usize) -> f64 {
        let blocks = self.inputs.div_ceil(self.block_size);
        let place = output * blocks * self.block_size + input;
        let at = output * blocks + input / self.block_size;
        let (value, zero_point) = match self.bits {
            Bits::Four => {
                let row = blocks.div_ceil(2);
                let block = input / self.block_size;
                let point = self
                    .zero_points
                    .as_ref()
                    .map_or(8, |points| points[output * row + block / 2] >> (4 * (block % 2)) & 15);
                (self.values[place / 2] >> (4 * (place % 2)) & 15, point)
            }
            Bits::Eight => {
                (self.values[place], self.zero_points.as_ref().map_or(128, |points| points[at]))
            }
        };
        (f64::from(value) - f64::from(zero_point)) * f64::from(self.scales[at])
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    outputs: usize,
    inputs: usize,
    bits: Bits,
    block_size: usize,
    has_zero_points: bool,
    has_bias: bool,
    /// Powers of ten that scales spread over.
    decades: i32,
    has_bf16_scales: bool,
}

/// The digits that bfloat16 has.
fn upper_half(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xFFFF_0000)
}

/// Inputs rounded to 8 bits in blocks, as the operator's accuracy level 4 does.
fn rounded(input: &[f32], block_size: usize) -> Vec<f64> {
    let block = |block: &[f32]| {
        let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let (scale, factor) =
            if largest > 0.0 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) };
        block
            .iter()
            .map(|x| f64::from((x * factor).round_ties_even()) * f64::from(scale))
            .collect::<Vec<_>>()
    };
    input.chunks(block_size).flat_map(block).collect()
}

fn check(shape: Shape, seed: u64) {
    let mut random = Random(seed | 1);
    let weights = Weights::random(shape, &mut random);
    let two: &dyn Threads = &Scoped::new(NonZero::new(2).unwrap());
    let packed = PackedWeights::pack(&weights.view(), two).unwrap();
    let mut input: Vec<f32> = (0..shape.rows * shape.inputs).map(|_| random.number()).collect();
    // A row of zeros among them.
    if shape.rows > 2 {
        input[shape.inputs..2 * shape.inputs].fill(0.0);
    }
    let bias: Option<Vec<f32>> =
        shape.has_bias.then(|| (0..shape.outputs).map(|_| random.number()).collect());
    let product = |instructions: Instructions, input: &[f32], threads: &dyn Threads| {
        let mut output = vec![f32::NAN; input.len() / shape.inputs * shape.outputs];
        packed.multiply(instructions, input, bias.as_deref(), &mut output, threads);
        output
    };
    let plain = product(Instructions::Portable, &input, &Serial);

    // Against the definition.
    for (row, (input, output)) in
        input.chunks(shape.inputs).zip(plain.chunks(shape.outputs)).enumerate().take(3)
    {
        let input = rounded(input, shape.block_size);
        for (index, &found) in output.iter().enumerate() {
            let terms = input.iter().enumerate().map(|(i, x)| x * weights.weight(index, i));
            let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[index]));
            let expected = terms.clone().sum::<f64>() + bias;
            let size = terms.map(f64::abs).sum::<f64>() + bias.abs();
            let error = (f64::from(found) - expected).abs();
            assert!(error <= 1e-5 * size, "{shape:?} row {row} output {index}: {found} {expected}");
        }
    }

    // Others are the same bits, and rows do not depend on others.
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    for instructions in Instructions::ALL.into_iter().filter(|i| i.are_available()) {
        let all = product(instructions, &input, two);
        assert!(bits(&all) == bits(&plain), "{instructions} {shape:?}");
        let last = product(instructions, &input[(shape.rows - 1) * shape.inputs..], &Serial);
        let expected = &plain[(shape.rows - 1) * shape.outputs..];
        assert!(bits(&last) == bits(expected), "{instructions}, the last row alone, {shape:?}");
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let bits = prop_oneof![Just(Bits::Four), Just(Bits::Eight)];
    let block_size = prop::sample::select(vec![16usize, 32, 64, 128, 256, 1024]);
    // Few rows are other kernels than many.
    let rows = prop_oneof![1usize..=9, 10usize..70];
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), 1i32..6);
    (rows, 1usize..130, 1usize..1400, bits, block_size, switches).prop_map(
        |(rows, outputs, inputs, bits, block_size, switches)| {
            let (has_zero_points, has_bias, has_bf16_scales, decades) = switches;
            Shape {
                rows,
                outputs,
                inputs,
                bits,
                block_size,
                has_zero_points,
                has_bias,
                decades,
                has_bf16_scales,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn all_instructions_give_the_products(shape in shapes(), seed in any::<u64>()) {
        check(shape, seed);
    }
}

/// The shapes of real models: SigLIP's hidden size of 4304, and outputs that fill no group.
#[test]
fn shapes_of_models() {
    let shape = |rows, outputs, inputs, bits, block_size| Shape {
        rows,
        outputs,
        inputs,
        bits,
        block_size,
        has_zero_points: bits == Bits::Four,
        has_bias: bits == Bits::Eight,
        decades: 1,
        has_bf16_scales: false,
    };
    for rows in [1, 3, 8, 33] {
        check(shape(rows, 1001, 1024, Bits::Four, 64), 1);
        check(shape(rows, 144, 4304, Bits::Eight, 64), 2);
        check(shape(rows, 144, 4304, Bits::Eight, 8192), 3);
        check(shape(rows, 64, 4608, Bits::Four, 32), 4);
        check(shape(rows, 64, 4608, Bits::Four, 8192), 5);
    }
}

/// 16 bits for each block of 4-bit weights, where the scales have no more digits.
#[test]
fn scales_of_16_bits_take_as_many() {
    let bytes = |bits, has_bf16_scales| {
        let shape = Shape {
            rows: 1,
            outputs: 64,
            inputs: 1024,
            bits,
            block_size: 64,
            has_zero_points: true,
            has_bias: false,
            decades: 3,
            has_bf16_scales,
        };
        let weights = Weights::random(shape, &mut Random(5));
        PackedWeights::pack(&weights.view(), &Serial).unwrap().bytes()
    };
    let blocks = 64 * 1024 / 64;
    assert_eq!(bytes(Bits::Four, true), 64 * 1024 / 2 + 2 * blocks + blocks / 2);
    assert_eq!(bytes(Bits::Four, false), 64 * 1024 / 2 + 4 * blocks + blocks / 2);
    assert_eq!(bytes(Bits::Eight, true), bytes(Bits::Eight, false));
}

#[test]
fn what_is_not_a_number_stays_so() {
    let mut random = Random(7);
    for (bits, rows) in [(Bits::Four, 2), (Bits::Four, 40), (Bits::Eight, 2), (Bits::Eight, 40)] {
        let shape = Shape {
            rows,
            outputs: 40,
            inputs: 96,
            bits,
            block_size: 32,
            has_zero_points: true,
            has_bias: true,
            decades: 1,
            has_bf16_scales: false,
        };
        let weights = Weights::random(shape, &mut random);
        let packed = PackedWeights::pack(&weights.view(), &Serial).unwrap();
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut input: Vec<f32> = (0..rows * 96).map(|_| random.number()).collect();
            input[96 + 40] = wrong;
            for instructions in Instructions::ALL.into_iter().filter(|i| i.are_available()) {
                let mut output = vec![0.0; rows * 40];
                packed.multiply(instructions, &input, Some(&[0.0; 40]), &mut output, &Serial);
                for (row, output) in output.chunks(40).enumerate() {
                    let is_number = output.iter().all(|x| x.is_finite());
                    let is_not = output.iter().all(|x| x.is_nan());
                    assert!(if row == 1 { is_not } else { is_number }, "{instructions} {row}");
                }
            }
        }
    }
}

#[test]
fn extremes() {
    // The largest integers of both signs in the largest block, and scales that half precision does
    // not have.
    for bits in [Bits::Four, Bits::Eight] {
        for (value, point) in [(0x00, 0xFF), (0xFF, 0x00)] {
            for scale in [1e-30, 3e-5, 1e5] {
                let inputs = 65_536;
                let weights = Weights {
                    outputs: 3,
                    inputs,
                    bits,
                    block_size: 65_536,
                    values: vec![value; 3 * inputs * bits.get() / 8],
                    scales: vec![scale; 3],
                    zero_points: Some(vec![point; 3]),
                };
                let packed = PackedWeights::pack(&weights.view(), &Serial).unwrap();
                for (rows, x) in [(1, 1.0), (1, -1.0), (9, 1.0), (9, -1.0)] {
                    let input = vec![x; rows * inputs];
                    let levels = if bits == Bits::Four { 15.0 } else { 255.0 };
                    let sign = if value == 0 { -x } else { x };
                    let expected = sign * levels * inputs as f32 * scale;
                    for instructions in Instructions::ALL.into_iter().filter(|i| i.are_available())
                    {
                        let mut output = vec![0.0; rows * 3];
                        packed.multiply(instructions, &input, None, &mut output, &Serial);
                        for &found in &output {
                            let error = (found / expected - 1.0).abs();
                            assert!(error < 1e-6, "{instructions} {bits:?} {found} {expected}");
                        }
                    }
                }
            }
        }
    }
}

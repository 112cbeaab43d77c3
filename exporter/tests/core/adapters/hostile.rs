//! Damaged adapters, at random but the same each time: whatever is in them, there is no panic, and an
//! error is one line.

use std::fs;

use lfm2vl_exporter::checkpoint::Checkpoint;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::Merged;
use crate::common::testdata;

const ROUNDS: usize = 400;

/// What JSON is made of, so that some of what comes out is JSON.
const PIECES: [&str; 16] = [
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "18446744073709551616",
    "\"\"",
    "[]",
    "{}",
    "[[",
    "}",
    ",",
    "\"(a*)*\\\\1$\"",
    "\u{fffd}",
    "\\u0000",
    "\"all-linear\"",
];

fn mutate(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len());
        let end = bytes.len().min(at + random.random_range(0..12));
        match random.random_range(0..5) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                drop(bytes.splice(at..end, piece.bytes()));
            }
            _ => {
                let copied = bytes[at..end].to_vec();
                let to = random.random_range(0..bytes.len());
                drop(bytes.splice(to..to, copied));
            }
        }
        if bytes.is_empty() {
            bytes.push(b'{');
        }
    }
}

#[test]
fn no_damage_makes_it_panic() {
    let mut random = SmallRng::seed_from_u64(7);
    let (mut opened, mut refused) = (0, 0);
    for adapter in ["patterns", "some-layers", "lora-bias", "embedding-tied"] {
        let base = Merged::open(adapter).base;
        let source = testdata(&format!("adapters/{adapter}"));
        let config = fs::read(source.join("adapter_config.json")).unwrap();
        let weights = fs::read(source.join("adapter_model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        let folder = tempfile::tempdir().unwrap();
        for round in 0..ROUNDS {
            let (mut config, mut weights) = (config.clone(), weights.clone());
            match round % 2 {
                0 => mutate(&mut random, &mut config),
                _ => {
                    let mut start = weights[..header].to_vec();
                    mutate(&mut random, &mut start);
                    weights.splice(..header, start);
                }
            }
            fs::write(folder.path().join("adapter_config.json"), config).unwrap();
            fs::write(folder.path().join("adapter_model.safetensors"), weights).unwrap();
            match Checkpoint::open_with_adapter(&base, folder.path()) {
                Ok(checkpoint) => {
                    opened += 1;
                    for name in checkpoint.dtypes().into_keys() {
                        let _ = checkpoint.load(&name);
                    }
                }
                Err(error) => {
                    refused += 1;
                    let message = error.to_string();
                    assert!(!message.contains('\n') && message.len() < 1000, "{message}");
                }
            }
        }
    }
    assert!(opened > 50 && refused > 500, "{opened} {refused}");
}

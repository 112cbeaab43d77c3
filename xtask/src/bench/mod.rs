//! `cargo xtask bench`: speed and memory of a random 450M model on the CPU, ours beside each peer
//! that is installed, on the same weights and threads, in turns.

mod chart;
mod contenders;
mod memory;

use std::{fs, path::Path, time::Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{make_checkpoint, peak, root, setup};
use contenders::Contender;

/// What is run, with the arguments that every contender takes.
struct Scenario {
    name: &'static str,
    image: Option<&'static str>,
    prompt_tokens: usize,
    new_tokens: usize,
    figures: &'static [Figure],
    /// Other ways in which ours are run as well, without peers.
    variants: &'static [Variant],
}

/// What is put behind a contender's name, and its arguments.
struct Variant {
    name: &'static str,
    arguments: &'static [&'static str],
}

/// A figure of a run: what it is called, and its key in the report of the run.
struct Figure {
    name: &'static str,
    key: &'static str,
    unit: &'static str,
}

const fn speed(name: &'static str, key: &'static str) -> Figure {
    Figure { name, key, unit: "tokens/s" }
}

const fn time(name: &'static str, key: &'static str) -> Figure {
    Figure { name, key, unit: "ms" }
}

const PREFILL: &str = "prefill_tokens_per_second";
const DECODE: &str = "decode_tokens_per_second";
const FIRST: &str = "time_to_first_token_ms";
/// Wall-clock time of the whole program, which it does not know itself.
const WALL: &str = "wall_ms";
/// The scenario of drafted tokens, which has a model of its own.
const DRAFTS: &str = "drafts";
/// Largest resident size of the program.
const PEAK: &str = "peak_mb";

const SCENARIOS: [Scenario; 9] = [
    Scenario {
        name: "cold",
        image: None,
        prompt_tokens: 24,
        new_tokens: 1,
        figures: &[time("cold start to first token", WALL)],
        variants: &[],
    },
    Scenario {
        name: "prefill",
        image: None,
        prompt_tokens: 512,
        new_tokens: 1,
        figures: &[speed("prefill of 512 tokens", PREFILL)],
        variants: &[],
    },
    Scenario {
        name: "decode",
        image: None,
        prompt_tokens: 128,
        new_tokens: 64,
        figures: &[speed("decode after 128 tokens", DECODE)],
        variants: &[],
    },
    Scenario {
        name: "long",
        image: None,
        prompt_tokens: 2048,
        new_tokens: 32,
        figures: &[
            speed("prefill of 2,048 tokens", PREFILL),
            speed("decode after 2,048 tokens", DECODE),
        ],
        variants: &[],
    },
    // With a model that only repeats itself: all drafts are right.
    Scenario {
        name: DRAFTS,
        image: None,
        prompt_tokens: 128,
        new_tokens: 256,
        figures: &[
            speed("decode, 256 tokens after 128", DECODE),
            Figure { name: "tokens that a run gives", key: "tokens_per_run", unit: "tokens" },
        ],
        variants: &[
            Variant { name: "", arguments: &[] },
            Variant { name: ", drafts of 1", arguments: &["--prompt-lookup", "1"] },
            Variant { name: ", drafts of 3", arguments: &["--prompt-lookup", "3"] },
            Variant { name: ", drafts of 7", arguments: &["--prompt-lookup", "7"] },
        ],
    },
    Scenario {
        name: "batch",
        image: None,
        prompt_tokens: 128,
        new_tokens: 128,
        figures: &[speed("decode of several conversations", DECODE)],
        variants: &[
            Variant { name: "", arguments: &[] },
            Variant { name: ", batch of 2", arguments: &["--batch", "2"] },
            Variant { name: ", batch of 4", arguments: &["--batch", "4"] },
            Variant { name: ", batch of 8", arguments: &["--batch", "8"] },
        ],
    },
    Scenario {
        name: "tile",
        image: Some("512x512.png"),
        prompt_tokens: 20,
        new_tokens: 1,
        figures: &[time("vision, a 512x512 tile", "vision_ms")],
        variants: &[],
    },
    Scenario {
        name: "small",
        image: Some("256x256.png"),
        prompt_tokens: 20,
        new_tokens: 1,
        figures: &[time("vision, a 256x256 image", "vision_ms")],
        variants: &[],
    },
    Scenario {
        name: "photo",
        image: Some("1280x720.jpg"),
        prompt_tokens: 20,
        new_tokens: 64,
        figures: &[
            time("image processing, a 1280x720 photo", "preprocess_ms"),
            time("vision, a 1280x720 photo", "vision_ms"),
            time("photo and 20 words: first token", FIRST),
            time("photo and 20 words: 64 tokens", "total_ms"),
            time("another question: first token", "second_question_ms"),
            Figure { name: "peak memory", key: PEAK, unit: "MB" },
        ],
        variants: &[],
    },
];

/// Runs the scenarios whose names are in `only`, or all.
pub(crate) fn run(repeat: usize, only: &[String]) -> Result<()> {
    let folder = root().join("demo/bench");
    fs::create_dir_all(&folder)?;
    let (checkpoint, repeating) = (root().join("demo/450m"), root().join("demo/450m-repeating"));
    let config = root().join("testdata/configs/lfm2-vl-450m.json");
    if !checkpoint.is_dir() {
        make_checkpoint::run(&config, &checkpoint, 0)?;
    }
    if !repeating.is_dir() {
        make_checkpoint::repeating(&config, &repeating)?;
    }
    let photos = setup::photos()?;
    let threads = std::thread::available_parallelism()?.get();
    let programs = setup::Programs::build()?;
    let contenders = contenders::all(&programs, &checkpoint, &folder, threads)?;
    let weights = contenders.iter().filter_map(|c| c.decoder_bytes).min().unwrap_or(1 << 28);
    let bandwidth = memory::bandwidth(threads, weights);

    let mut rows = Vec::new();
    for scenario in SCENARIOS.iter().filter(|s| only.is_empty() || only.iter().any(|o| o == s.name))
    {
        let contenders = if scenario.name == DRAFTS {
            &contenders::ours(&programs, &repeating, &folder.join("repeating"), threads)?
        } else {
            &contenders
        };
        let measured = measure(scenario, contenders, &photos, repeat)?;
        for figure in scenario.figures {
            let values: Vec<_> = measured
                .iter()
                .filter_map(|(name, reports)| Some((name.clone(), median(reports, figure.key)?)))
                .collect();
            let row = Row { name: figure.name, unit: figure.unit, values };
            row.print();
            if figure.key == DECODE && scenario.variants.is_empty() {
                print_roofline(&row, contenders, bandwidth);
            }
            rows.push(row);
        }
    }
    let report = folder.join("bench.json");
    let figures: Vec<Value> = rows.iter().map(Row::to_json).collect();
    let settings = json!({ "threads": threads, "repeat": repeat, "read_gb_s": bandwidth / 1e9 });
    let whole = json!({ "settings": settings, "figures": figures });
    fs::write(&report, format!("{whole:#}\n"))?;
    let picture = folder.join("bench.svg");
    fs::write(&picture, chart::svg(&rows))?;
    println!("\n{threads} threads, medians of {repeat} rounds in turns");
    println!("written to {} and {}", report.display(), picture.display());
    Ok(())
}

/// The reports of every contender that does the scenario.
fn measure(
    scenario: &Scenario,
    contenders: &[Contender],
    photos: &Path,
    repeat: usize,
) -> Result<Vec<(String, Vec<Value>)>> {
    let alone = [Variant { name: "", arguments: &[] }];
    let variants = if scenario.variants.is_empty() { &alone } else { scenario.variants };
    let taking_part: Vec<(&Contender, &Variant)> = contenders
        .iter()
        .filter(|contender| scenario.image.is_none() || contender.sees)
        .filter(|contender| scenario.variants.is_empty() || contender.is_ours())
        .flat_map(|contender| variants.iter().map(move |variant| (contender, variant)))
        .collect();
    let mut reports = vec![Vec::new(); taking_part.len()];
    for _ in 0..repeat.max(1) {
        for ((contender, variant), reports) in taking_part.iter().zip(&mut reports) {
            let mut command = contender.command()?;
            command.args(["--prompt-tokens", &scenario.prompt_tokens.to_string()]);
            command.args(["--new-tokens", &scenario.new_tokens.to_string(), "--repeat", "1"]);
            command.args(variant.arguments);
            if let Some(image) = scenario.image {
                command.arg("--image").arg(photos.join(image));
            }
            if scenario.name == "cold" {
                command.arg("--cold");
            }
            let start = Instant::now();
            let (output, peak) = peak::run(&mut command)?;
            let mut report: Value = serde_json::from_slice(&output)?;
            report[WALL] = json!(1e3 * start.elapsed().as_secs_f64());
            // Scripts that start other programs say themselves what these took.
            if report[PEAK].is_null() {
                report[PEAK] = json!(peak as f64 / 1e6);
            }
            reports.push(report);
        }
    }
    let names = taking_part.iter().map(|(c, variant)| format!("{}{}", c.name, variant.name));
    Ok(names.zip(reports).collect())
}

fn median(reports: &[Value], key: &str) -> Option<f64> {
    let mut values: Vec<f64> = reports.iter().filter_map(|report| report[key].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// One figure of all contenders.
struct Row {
    name: &'static str,
    unit: &'static str,
    values: Vec<(String, f64)>,
}

impl Row {
    fn more_is_better(&self) -> bool {
        self.unit == "tokens/s"
    }

    fn print(&self) {
        println!("\n{} ({})", self.name, self.unit);
        let Some((_, ours)) = self.values.first() else { return };
        for (name, value) in &self.values {
            let ratio = if self.more_is_better() { ours / value } else { value / ours };
            println!("  {name:<34}{value:>10.1}{ratio:>10.2}");
        }
    }

    fn to_json(&self) -> Value {
        json!({ "figure": self.name, "unit": self.unit, "values": self.values })
    }
}

/// Which share of the memory's speed decoding reaches: every token reads all weights of the decoder.
fn print_roofline(row: &Row, contenders: &[Contender], bandwidth: f64) {
    println!("  memory gives {:.1} GB/s", bandwidth / 1e9);
    for contender in contenders {
        let speed = row.values.iter().find(|(name, _)| *name == contender.name);
        if let (Some(bytes), Some((name, speed))) = (contender.decoder_bytes, speed) {
            let share = 100.0 * speed * bytes as f64 / bandwidth;
            println!("  {name:<34}{:>7.1} MB a token {share:>6.0} % of it", bytes as f64 / 1e6);
        }
    }
}

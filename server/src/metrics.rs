//! Figures for Prometheus.

use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounterVec, Opts, Registry, TextEncoder,
};

/// The figures of a service, besides those that its engine has.
pub(crate) struct Metrics {
    registry: Registry,
    responses: IntCounterVec,
    latencies: Latencies,
}

/// How long requests take, in seconds.
#[derive(Clone)]
pub(crate) struct Latencies {
    pub(crate) first_token: Histogram,
    pub(crate) between_tokens: Histogram,
    pub(crate) request: Histogram,
}

const REQUEST_BUCKETS: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 150.0];
const TOKEN_BUCKETS: [f64; 10] = [0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5];

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, buckets: [f64; 10]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let latencies = Latencies {
            first_token: histogram(
                "lfm2vl_time_to_first_token_seconds",
                "From a streaming request to its first token.",
                REQUEST_BUCKETS,
            )?,
            between_tokens: histogram(
                "lfm2vl_time_between_tokens_seconds",
                "Between two pieces of a stream.",
                TOKEN_BUCKETS,
            )?,
            request: histogram(
                "lfm2vl_request_duration_seconds",
                "From a request to the end of its answers.",
                REQUEST_BUCKETS,
            )?,
        };
        let options = Opts::new("lfm2vl_http_responses_total", "Responses, by route and status.");
        let responses = IntCounterVec::new(options, &["route", "method", "status"])?;
        registry.register(Box::new(responses.clone()))?;
        Ok(Metrics { registry, responses, latencies })
    }

    /// All figures in Prometheus' text format, with those of the engine.
    pub(crate) fn text(&self, engine: &lfm2vl::Metrics) -> Result<String, prometheus::Error> {
        let mut families = of_engine(engine)?.gather();
        families.extend(self.registry.gather());
        TextEncoder::new().encode_to_string(&families)
    }

    /// Counts a response.
    pub(crate) fn responded(&self, route: &str, method: &str, status: &str) {
        self.responses.with_label_values(&[route, method, status]).inc();
    }

    pub(crate) fn latencies(&self) -> Latencies {
        self.latencies.clone()
    }
}

/// What is told of an engine: name, help, whether it only grows, and the figure.
type Figure = (&'static str, &'static str, bool, fn(&lfm2vl::Metrics) -> f64);

const ENGINE: [Figure; 25] = [
    ("requests_active", "Answers that are being made.", false, |m| m.active as f64),
    ("requests_in_prompt", "Those of them whose images or prompt are not done.", false, |m| {
        m.in_prompt as f64
    }),
    ("requests_waiting", "Requests that wait for a slot.", false, |m| m.waiting as f64),
    ("slots", "Answers that can be made at a time.", false, |m| m.slots as f64),
    ("cached_slots", "Slots that keep the state of an ended answer.", false, |m| {
        m.cached_slots as f64
    }),
    ("cached_tokens", "Tokens of these.", false, |m| m.cached_tokens as f64),
    ("state_bytes", "Bytes of the buffers of keys, values and conv states.", false, |m| {
        m.state_bytes as f64
    }),
    ("image_cache_bytes", "Bytes of the image features that are kept.", false, |m| {
        m.image_cache_bytes as f64
    }),
    ("requests_total", "Answers that were asked of the engine.", true, |m| m.requests as f64),
    ("requests_refused_total", "Answers for which there was no room to wait.", true, |m| {
        m.refused as f64
    }),
    ("requests_finished_total", "Answers that ended as they should.", true, |m| m.finished as f64),
    ("requests_cancelled_total", "Answers that were given up or late.", true, |m| {
        m.cancelled as f64
    }),
    ("requests_failed_total", "Answers that failed.", true, |m| m.failed as f64),
    ("prompt_tokens_total", "Tokens of prompts that went through the decoder.", true, |m| {
        m.prompt_tokens as f64
    }),
    ("cached_prompt_tokens_total", "Tokens of prompts whose state was there.", true, |m| {
        m.reused_tokens as f64
    }),
    ("completion_tokens_total", "Tokens of answers.", true, |m| m.answer_tokens as f64),
    ("images_total", "Images that went through the vision graphs.", true, |m| m.images as f64),
    ("image_cache_hits_total", "Images whose features were there.", true, |m| {
        m.image_cache_hits as f64
    }),
    ("decode_steps_total", "Steps of decoding.", true, |m| m.steps as f64),
    ("decode_steps_ahead_total", "Steps that began before tokens were chosen.", true, |m| {
        m.steps_ahead as f64
    }),
    ("vision_seconds_total", "Time in the vision graphs.", true, |m| m.vision_time.as_secs_f64()),
    ("prefill_seconds_total", "Time in prompts.", true, |m| m.prefill_time.as_secs_f64()),
    ("decode_seconds_total", "Time in steps.", true, |m| m.decode_time.as_secs_f64()),
    ("mask_seconds_total", "Time in which masks of constraints were made.", true, |m| {
        m.mask_time.as_secs_f64()
    }),
    ("mask_wait_seconds_total", "Time that steps waited for masks of constraints.", true, |m| {
        m.mask_wait.as_secs_f64()
    }),
];

fn of_engine(engine: &lfm2vl::Metrics) -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    for (name, help, is_counter, figure) in ENGINE {
        let name = format!("lfm2vl_{name}");
        if is_counter {
            let counter = Counter::new(name, help)?;
            counter.inc_by(figure(engine));
            registry.register(Box::new(counter))?;
        } else {
            let gauge = Gauge::new(name, help)?;
            gauge.set(figure(engine));
            registry.register(Box::new(gauge))?;
        }
    }
    Ok(registry)
}

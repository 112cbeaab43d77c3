//! `adapter_config.json`, typed. Keys, defaults and quirks are those of `LoraConfig` in peft 0.21.2
//! (`tuners/lora/config.py`); what of them changes a merge is read.

use serde_json::Value;

use super::{AdapterError, pattern::Pattern, refused, short, variants};

/// Ranks above this are taken for damage.
const LARGEST_RANK: u64 = 1 << 16;

/// What an adapter's config says of its merge.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    /// Whether rows of weights have magnitudes of their own (DoRA).
    pub(super) use_dora: bool,
    /// Whether the second factor has a bias.
    pub(super) lora_bias: bool,
    /// Whether token embedding and output head, where they are one, are tuned as one.
    pub(super) ensure_weight_tying: bool,
    /// Modules that are saved whole: ends of their names.
    pub(super) modules_to_save: Vec<String>,
    rank: u64,
    alpha: f64,
    rank_pattern: Vec<(Pattern, u64)>,
    alpha_pattern: Vec<(Pattern, f64)>,
    use_rslora: bool,
    targets: Targets,
    excluded: Option<Modules>,
    saved_patterns: Vec<Pattern>,
    /// Numbers of the layers that are tuned, where not all are.
    layers: Option<Vec<u64>>,
    layers_pattern: Vec<Pattern>,
}

/// Which modules are tuned.
#[derive(Debug)]
enum Targets {
    /// It is not said.
    Unknown,
    /// Every linear layer but the output head.
    AllLinear,
    Modules(Modules),
}

#[derive(Debug)]
enum Modules {
    /// Whole names, or ends of names.
    Names(Vec<String>),
    Expression(Pattern),
}

impl Modules {
    fn matches(&self, name: &str) -> Result<bool, AdapterError> {
        match self {
            Modules::Names(names) => Ok(names.iter().any(|end| {
                name.strip_suffix(end.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })),
            Modules::Expression(pattern) => pattern.matches(name),
        }
    }
}

impl AdapterConfig {
    /// Reads `adapter_config.json`.
    pub(super) fn from_json(json: &Value) -> Result<Self, AdapterError> {
        let keys = Keys(json);
        let method = keys.get("peft_type").map_or("missing".into(), |value| match value {
            Value::String(method) => short(method),
            other => short(&other.to_string()),
        });
        if method != "LORA" {
            return Err(AdapterError::Method(method));
        }
        variants::refuse(json)?;
        if let Some(bias) = keys.get("bias")
            && !matches!(bias.as_str(), Some("none" | "all" | "lora_only"))
        {
            let remedy = "only 'none', 'all' and 'lora_only' are known; correct it";
            return Err(refused("bias", bias, remedy));
        }
        let modules_to_save = keys.names("modules_to_save")?;
        let saved_patterns = modules_to_save
            .iter()
            .map(|name| Pattern::within("modules_to_save", name))
            .collect::<Result<_, _>>()?;
        let targets = match keys.get("target_modules") {
            Some(Value::String(all)) if all == "all-linear" => Targets::AllLinear,
            _ => keys.modules("target_modules")?.map_or(Targets::Unknown, Targets::Modules),
        };
        Ok(AdapterConfig {
            use_dora: keys.flag("use_dora")?,
            lora_bias: keys.flag("lora_bias")?,
            ensure_weight_tying: keys.flag("ensure_weight_tying")?,
            modules_to_save,
            rank: keys
                .get("r")
                .map_or(Ok(8), |value| rank(value).ok_or_else(|| rank_error("r", value)))?,
            alpha: keys.get("lora_alpha").map_or(Ok(8.0), |value| {
                alpha(value).ok_or_else(|| alpha_error("lora_alpha", value))
            })?,
            rank_pattern: keys.patterns("rank_pattern", rank, rank_error)?,
            alpha_pattern: keys.patterns("alpha_pattern", alpha, alpha_error)?,
            use_rslora: keys.flag("use_rslora")?,
            targets,
            excluded: keys.modules("exclude_modules")?,
            saved_patterns,
            layers: keys.layers()?,
            layers_pattern: keys
                .names("layers_pattern")?
                .iter()
                .map(|name| Pattern::layer("layers_pattern", name))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The rank of a module and what its product is multiplied with; `names` are what the module may
    /// be called, the likeliest first. (`_create_and_replace` in peft's `tuners/lora/model.py`.)
    pub(super) fn rank_and_scale(&self, names: &[String]) -> Result<(usize, f32), AdapterError> {
        let rank = first_match(&self.rank_pattern, names)?.unwrap_or(self.rank);
        let alpha = first_match(&self.alpha_pattern, names)?.unwrap_or(self.alpha);
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank as usize, (alpha / divisor) as f32))
    }

    /// Whether a module is tuned, by any of its names (`check_target_module_exists` in peft's
    /// `tuners/tuners_utils.py`).
    pub(super) fn targets(&self, names: &[String]) -> Result<bool, AdapterError> {
        for name in names {
            if self.targets_name(name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a module must have tensors. An expression may have been written for other names, so this
    /// is known of lists only.
    pub(super) fn certainly_targets(&self, names: &[String]) -> Result<bool, AdapterError> {
        let plain = |modules: &Modules| matches!(modules, Modules::Names(_));
        let known = matches!(&self.targets, Targets::Modules(modules) if plain(modules))
            && self.excluded.as_ref().is_none_or(plain);
        Ok(known && self.targets(names)?)
    }

    fn targets_name(&self, name: &str) -> Result<bool, AdapterError> {
        if let Some(excluded) = &self.excluded
            && excluded.matches(name)?
        {
            return Ok(false);
        }
        for saved in &self.saved_patterns {
            if saved.matches(name)? {
                return Ok(false);
            }
        }
        match &self.targets {
            Targets::Unknown => Ok(true),
            Targets::AllLinear => Ok(name != "lm_head"),
            Targets::Modules(modules @ Modules::Expression(_)) => modules.matches(name),
            Targets::Modules(modules @ Modules::Names(names)) => {
                let whole = names.iter().any(|target| target == name);
                Ok(whole || (modules.matches(name)? && self.is_in_layers(name)?))
            }
        }
    }

    fn is_in_layers(&self, name: &str) -> Result<bool, AdapterError> {
        let Some(layers) = &self.layers else { return Ok(true) };
        let mut layer = None;
        if self.layers_pattern.is_empty() {
            // The first number that has two parts before it and one after it.
            let parts: Vec<&str> = name.split('.').collect();
            let inner = parts.get(2..parts.len() - 1).unwrap_or_default();
            layer = inner.iter().find_map(|part| part.parse().ok());
        }
        for pattern in &self.layers_pattern {
            layer = layer.or(pattern.layer_of(name)?);
        }
        Ok(layer.is_some_and(|layer| layers.contains(&layer)))
    }
}

fn first_match<T: Copy>(
    patterns: &[(Pattern, T)],
    names: &[String],
) -> Result<Option<T>, AdapterError> {
    for name in names {
        for (pattern, value) in patterns {
            if pattern.matches(name)? {
                return Ok(Some(*value));
            }
        }
    }
    Ok(None)
}

fn rank(value: &Value) -> Option<u64> {
    value.as_u64().filter(|rank| (1..=LARGEST_RANK).contains(rank))
}

fn rank_error(key: &str, value: &Value) -> AdapterError {
    let remedy =
        format!("it must be a whole number from 1 to {LARGEST_RANK}; save the adapter again");
    refused(key, value, &remedy)
}

fn alpha(value: &Value) -> Option<f64> {
    value.as_f64()
}

fn alpha_error(key: &str, value: &Value) -> AdapterError {
    refused(key, value, "it must be a number; save the adapter again")
}

/// The object of the file. A null counts as missing.
struct Keys<'a>(&'a Value);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str) -> Result<bool, AdapterError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| refused(key, value, "it must be true or false; correct it"))
    }

    /// A list of texts, or one.
    fn names(&self, key: &str) -> Result<Vec<String>, AdapterError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(name)) if name.is_empty() => Ok(Vec::new()),
            Some(Value::String(name)) => Ok(vec![name.clone()]),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|_| refused(key, value, "it must be a list of names; correct it")),
        }
    }

    /// A list of names, or an expression.
    fn modules(&self, key: &'static str) -> Result<Option<Modules>, AdapterError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(source)) if source.is_empty() => Ok(None),
            Some(Value::String(source)) => {
                Ok(Some(Modules::Expression(Pattern::whole(key, source)?)))
            }
            Some(_) => Ok(Some(Modules::Names(self.names(key)?))),
        }
    }

    /// A map from expressions to numbers, in order.
    fn patterns<T>(
        &self,
        key: &'static str,
        number: impl Fn(&Value) -> Option<T>,
        error: impl Fn(&str, &Value) -> AdapterError,
    ) -> Result<Vec<(Pattern, T)>, AdapterError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let object = value.as_object();
        let object =
            object.ok_or_else(|| refused(key, value, "it must be an object; correct it"))?;
        let pair = |(source, value): (&String, &Value)| {
            let number = number(value).ok_or_else(|| error(key, value))?;
            Ok((Pattern::end(key, source)?, number))
        };
        object.iter().map(pair).collect()
    }

    fn layers(&self) -> Result<Option<Vec<u64>>, AdapterError> {
        let key = "layers_to_transform";
        let Some(value) = self.get(key) else { return Ok(None) };
        if let Some(layer) = value.as_u64() {
            return Ok(Some(vec![layer]));
        }
        let layers: Vec<u64> = serde_json::from_value(value.clone())
            .map_err(|_| refused(key, value, "it must be a list of layers; correct it"))?;
        Ok((!layers.is_empty()).then_some(layers))
    }
}

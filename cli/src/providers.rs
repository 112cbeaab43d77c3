//! Arguments that choose what runs the graphs.

use anyhow::{Context, Result, ensure};
use clap::Args;
use lfm2vl::{EngineBuilder, Graph, Provider};

/// What runs the graphs.
#[derive(Args)]
pub(crate) struct ProviderArguments {
    /// What runs the graphs: kernels (the CPU with this project's kernels), cpu (with ONNX Runtime's),
    /// cuda, tensorrt, coreml, directml, openvino, webgpu, plugin:PATH (a provider's library, or a
    /// folder that has one), or auto. Several, separated by commas, are tried in order. Without it
    /// kernels where they are set up, else cpu.
    #[arg(long, value_name = "LIST")]
    provider: Option<String>,
    /// What runs vision, if not the same.
    #[arg(long, value_name = "LIST")]
    vision_provider: Option<String>,
    /// What runs the decoder, if not the same.
    #[arg(long, value_name = "LIST")]
    decoder_provider: Option<String>,
    /// A setting of a provider, such as cuda.device_id=1 or plugin.device=gpu; may be given several
    /// times.
    #[arg(long, value_name = "PROVIDER.NAME=VALUE")]
    provider_option: Vec<String>,
}

impl ProviderArguments {
    pub(crate) fn apply(&self, mut builder: EngineBuilder) -> Result<EngineBuilder> {
        let options: Vec<_> =
            self.provider_option.iter().map(|text| parse_option(text)).collect::<Result<_>>()?;
        let mut used = vec![false; options.len()];
        let mut list = |names: &str| list(names, &options, &mut used);
        if let Some(names) = &self.provider {
            builder = builder.providers(list(names)?);
        }
        if let Some(names) = &self.vision_provider {
            builder = builder.graph_providers(Graph::VisionEncoder, list(names)?);
        }
        if let Some(names) = &self.decoder_provider {
            builder = builder.graph_providers(Graph::Decoder, list(names)?);
        }
        for (text, used) in self.provider_option.iter().zip(used) {
            ensure!(
                used,
                "--provider-option {text} is of a provider that was not asked for; name it in --provider"
            );
        }
        Ok(builder)
    }
}

/// A setting: which provider's, its name, and its value.
type ProviderOption = (String, (String, String));

fn parse_option(text: &str) -> Result<ProviderOption> {
    let parts = text.split_once('=').and_then(|(name, value)| {
        name.split_once('.').map(|(provider, name)| (provider, name, value))
    });
    let (provider, name, value) =
        parts.with_context(|| format!("--provider-option {text} is not PROVIDER.NAME=VALUE"))?;
    Ok((provider.to_owned(), (name.to_owned(), value.to_owned())))
}

fn list(names: &str, options: &[ProviderOption], used: &mut [bool]) -> Result<Vec<Provider>> {
    let auto = Provider::auto().iter().map(Provider::name).collect::<Vec<_>>();
    let mut providers = Vec::new();
    for name in names.split(',').map(str::trim) {
        let names = if name == "auto" { &auto[..] } else { &[name.to_owned()] };
        for name in names {
            let kind = name.split(':').next().unwrap_or_default();
            let of_it = options.iter().zip(&mut *used).filter(|((of, _), _)| of == kind);
            let mut settings = Vec::new();
            for ((_, setting), used) in of_it {
                settings.push(setting.clone());
                *used = true;
            }
            providers.push(Provider::parse(name, &settings)?);
        }
    }
    Ok(providers)
}

//! Settings of the engine, as arguments say them.

use std::sync::Arc;

use anyhow::Context as _;
use clap::ValueEnum;
use engine::{CacheKind, EngineLimits, Speculation};
use model::Decoder;

use crate::context::Context;
use crate::failure::Failure;
use crate::open_model::{LoadArgs, OpenModel};

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct CacheArgs {
    /// What keys and values are kept as: the numbers of products, or 8 bits, which take about half the memory of bf16 and change answers a
    /// little
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    kv_cache_dtype: CacheDtype,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum CacheDtype {
    /// As products take them: bf16, or f32 for a model of f32
    #[default]
    Auto,
    /// 8 bits, and a scale for each position and head
    Int8,
}

impl CacheArgs {
    pub(crate) fn kind(self) -> CacheKind {
        match self.kv_cache_dtype {
            CacheDtype::Auto => CacheKind::Operands,
            CacheDtype::Int8 => CacheKind::Int8,
        }
    }
}

/// How the engine works.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct EngineArgs {
    /// A smaller model of the same tokenizer that guesses what the model says next; the guesses are checked together: the same answers,
    /// sooner where they are often right
    #[arg(long, value_name = "NAME|PATH")]
    draft_model: Option<String>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Guess tokens, those that repeat what was there before and those of --draft-model, and check the guesses together: the same answers,
    /// sooner where they are right
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    speculation: When,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum When {
    /// Never
    Off,
    /// When it is faster, as the last guesses and steps tell
    #[default]
    Auto,
    /// Wherever something repeats itself, to measure
    Always,
}

impl EngineArgs {
    /// The usual limits with these settings.
    pub(crate) fn limits(&self) -> EngineLimits {
        let speculation = match self.speculation {
            When::Off => Speculation::Off,
            When::Auto => Speculation::WhenItPays,
            When::Always => Speculation::Always,
        };
        let cache_kind = self.cache.kind();
        EngineLimits { speculation, cache_kind, ..EngineLimits::default() }
    }

    /// Whether there is to be a draft model.
    pub(crate) fn has_draft_model(&self) -> bool {
        self.draft_model.is_some()
    }

    /// Loads the draft model of a model.
    ///
    /// # Errors
    /// When it cannot be used, or has another vocabulary.
    pub(crate) fn open_draft_model(
        &self,
        of: &OpenModel,
        context: &Context,
    ) -> anyhow::Result<Option<Arc<Decoder>>> {
        let Some(value) = &self.draft_model else { return Ok(None) };
        if matches!(self.speculation, When::Off) {
            let problem = "--draft-model guesses tokens: leave out --speculation off";
            return Err(Failure::usage(problem).into());
        }
        let draft = OpenModel::open(value, &LoadArgs::default(), context)
            .with_context(|| format!("cannot use draft model `{value}`"))?;
        let has_other_tokens = match (&draft.tokenizer, &of.tokenizer) {
            (Some(one), Some(other)) => {
                let n = one.vocab_size().max(other.vocab_size()) as u32;
                (0..n).any(|id| one.token_bytes(id) != other.token_bytes(id))
            }
            _ => draft.config.vocab_size != of.config.vocab_size,
        };
        if has_other_tokens {
            let (draft, model) = (draft.name, of.name.clone());
            return Err(Failure::OtherTokens { draft, model }.into());
        }
        Ok(Some(draft.decoder))
    }
}

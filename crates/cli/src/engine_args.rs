//! Settings of the engine, as arguments say them.

use clap::ValueEnum;
use engine::{CacheKind, EngineLimits, Speculation};

use crate::failure::Failure;

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct CacheArgs {
    /// Number type of the cache of keys and values: that of the model's products, or 8 bits, which take about half the memory of bf16 and change
    /// answers a little; on the processors they are slower over long contexts
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    kv_cache_dtype: CacheDtype,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum CacheDtype {
    /// bf16, or f32 for a model that is computed in f32
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
    /// sooner where they are often right. Its cache is as large as the model's at most
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
    /// Wherever there is a guess, to measure
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

    /// The `--draft-model` value.
    pub(crate) fn draft_model(&self) -> Option<&str> {
        self.draft_model.as_deref()
    }

    /// The same settings without the draft model.
    pub(crate) fn without_draft_model(&self) -> Self {
        Self { draft_model: None, ..self.clone() }
    }

    /// Refuses settings that contradict one another.
    ///
    /// # Errors
    /// [`Failure::Usage`].
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if let (Some(_), When::Off) = (&self.draft_model, self.speculation) {
            let problem = "--draft-model guesses tokens: leave out --speculation off";
            return Err(Failure::usage(problem));
        }
        Ok(())
    }
}

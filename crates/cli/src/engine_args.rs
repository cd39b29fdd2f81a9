//! Settings of the engine, as arguments say them.

use clap::ValueEnum;
use engine::{CacheKind, EngineLimits, Speculation};

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
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    cache: CacheArgs,
    /// Guess tokens that repeat what was there before, and check the guesses together: the same answers, sooner where they repeat
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
    pub(crate) fn limits(self) -> EngineLimits {
        let speculation = match self.speculation {
            When::Off => Speculation::Off,
            When::Auto => Speculation::WhenItPays,
            When::Always => Speculation::Always,
        };
        let cache_kind = self.cache.kind();
        EngineLimits { speculation, cache_kind, ..EngineLimits::default() }
    }
}

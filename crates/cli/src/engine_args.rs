//! Settings of the engine, as arguments say them.

use clap::ValueEnum;
use engine::{EngineLimits, Speculation};

/// How the engine works; no setting changes what is said.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct EngineArgs {
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
        EngineLimits { speculation, ..EngineLimits::default() }
    }
}

//! Training: optimiser, schedule, the training step, run directories with exact resume, memory plan.
//!
//! A run is a folder that holds everything ([`Run`]): the recipe as resolved, metrics, events, checkpoints. Its data
//! position is one counter of rows, so N steps equal N/2, a kill, a resume and N/2 more, bit for bit on one kernel
//! family of the processors; on a GPU the rows are the same, the bits need not be. Never here: HTTP, the command line.
//!
//! ```
//! use train::schedule::Schedule;
//!
//! let schedule = Schedule { peak_learning_rate: 2e-3, warmup_steps: 10, decay_steps: 50 };
//! let rate = |step| schedule.learning_rate(step, 100);
//! assert!(rate(0) < rate(9) && rate(9) == rate(49) && rate(99) < rate(60));
//! ```

mod error;
pub mod export;
pub mod optimizer;
pub mod plan;
pub mod recipe;
mod rows;
mod run;
pub mod schedule;
mod trained;
mod trainer;
pub mod validation;

pub use error::TrainError;
pub use recipe::Recipe;
pub use rows::Rows;
pub use run::{
    Inherited, METRICS_FILE, Outcome, Progress, RECIPE_FILE, Run, RunControl, latest_parameters,
    starting_config, template_of,
};
pub use trained::Trained;
pub use trainer::{StepReport, Trainer};

//! Measuring models: exact match on questions, intervals, training curves, the report of a run.
//!
//! [`ask`] puts many short questions to an engine at once, [`company`] marks the answers on the invented company's facts,
//! [`intervals`] says how far a share can be trusted, [`report`] holds everything measured in a run and writes it as JSON,
//! as a table for the terminal, and as one HTML page. Never here: training, files other than those a caller names, HTTP.
//!
//! ```
//! use eval::answers::is_match;
//! use eval::intervals::{Cluster, clustered, wilson};
//!
//! assert!(is_match("148 euros", "148 Euros."));
//! // 160 of 200 answers are right. The interval is wider when they are about 25 facts, known or not known.
//! let independent = wilson(160, 200);
//! let mut facts = vec![Cluster { n_right: 8, n_questions: 8 }; 20];
//! facts.extend(vec![Cluster { n_right: 0, n_questions: 8 }; 5]);
//! let by_fact = clustered(&facts);
//! assert!(by_fact.low < independent.low && independent.high < by_fact.high);
//! ```

pub mod answers;
pub mod ask;
pub mod company;
mod curve;
pub mod divergence;
mod error;
pub mod figures;
pub mod intervals;
mod plot;
pub mod report;

pub use curve::{Curve, CurvePoint};
pub use error::EvalError;
pub use plot::loss_curve_svg;

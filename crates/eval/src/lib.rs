//! Measuring models: exact match on questions, intervals, training curves, the report of a run.
//!
//! [`ask`] puts many short questions to an engine at once, [`company`] marks the answers on the invented company's facts,
//! [`intervals`] says how far a share can be trusted, [`report`] holds everything measured in a run and writes it as JSON,
//! as a table for the terminal, and as one HTML page. Never here: training, files other than those a caller names, HTTP.
//!
//! ```
//! use eval::answers::is_match;
//! use eval::intervals::{Cluster, clustered};
//!
//! assert!(is_match("148 euros", "148 Euros."));
//! // 160 of 200 answers are right. The interval is wider when they are about 25 facts, known or not known, than when each
//! // is about a fact of its own.
//! let questions = |n_right, n_questions| Cluster { n_right, n_questions };
//! let apart = clustered(&[vec![questions(1, 1); 160], vec![questions(0, 1); 40]].concat());
//! let by_fact = clustered(&[vec![questions(8, 8); 20], vec![questions(0, 8); 5]].concat());
//! assert!(by_fact.low < apart.low && apart.high < by_fact.high);
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
pub use plot::{GrowthPlot, growth_svg, loss_curve_svg};

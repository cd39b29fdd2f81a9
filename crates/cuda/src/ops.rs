//! The operations. Formulas, shapes and sources stand with the CPU kernels of the same names; what differs is said here.
//!
//! Each function panics when a shape or number type does not fit.

pub mod attention_packed;
pub mod attention_paged;
pub mod blocks;
pub mod elementwise;
pub mod embedding;
pub mod few_rows;
pub mod loss;
pub mod norm;
pub mod rope;
pub mod row_numbers;
pub mod swiglu;

pub use crate::blas::{product, product_backward_input, product_backward_weight};

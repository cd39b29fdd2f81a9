//! Dtype, shape, storage and one function per operation.

//! Numerical kernels on slices, for every CPU family, and the thread pool.

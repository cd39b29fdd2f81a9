//! The decoder: configuration, forward and backward, cache interface.

//! Wire types of the API dialects.

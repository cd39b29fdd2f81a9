//! Development only: tiny random models, golden loader, tolerance checks, failing writers.

//! Measuring models: exact match, bits per byte, intervals, reports.

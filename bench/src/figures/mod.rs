//! Figures, drawn from samples alone.

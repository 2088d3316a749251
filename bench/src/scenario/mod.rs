//! A scenario: what a person asks the bench to measure.

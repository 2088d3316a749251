//! Correction for the number of metrics that were looked at (Benjamini and Hochberg 1995).

/// Adjusted p values in the order given: below q, at most a share q of what is called a difference
/// is expected to be none.
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    let mut adjusted = vec![1.0; p.len()];
    let mut least = 1.0_f64;
    for (position, index) in order.into_iter().enumerate() {
        let rank = p.len() - position;
        least = least.min(p[index] * p.len() as f64 / rank as f64);
        adjusted[index] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::{super::tests::near, *};

    #[test]
    fn as_r_does() {
        // R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "BH")
        let found = benjamini_hochberg(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in found.into_iter().zip([0.02, 0.04, 0.04, 0.02]) {
            near(found, expected, 1e-12);
        }
        assert!(benjamini_hochberg(&[]).is_empty());
    }
}

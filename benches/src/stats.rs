//! Medians, percentiles and spreads of small samples. Pure.

/// The middle of a sample and its ends.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// The spread of a sample; nothing for an empty one.
pub(crate) fn spread(sample: &[f64]) -> Option<Spread> {
    let sorted = sorted(sample);
    Some(Spread { median: median_of(&sorted)?, min: *sorted.first()?, max: *sorted.last()? })
}

/// The value below which the share `p` (0 to 1) of a sample lies: the smallest value with at least that share at or
/// below it, so that it is always one that occurred. Reorders the sample; nothing for an empty one.
pub(crate) fn percentile(sample: &mut [u64], p: f64) -> Option<u64> {
    let last = sample.len().checked_sub(1)?;
    let rank = (p * sample.len() as f64).ceil() as usize;
    let index = rank.saturating_sub(1).min(last);
    Some(*sample.select_nth_unstable(index).1)
}

/// Ratios of values that were measured in the same round. Rounds that miss one of them are left out, and so is a
/// division by nothing.
pub(crate) fn ratios(values: &[Option<f64>], bases: &[Option<f64>]) -> Vec<f64> {
    let pairs = values.iter().zip(bases);
    pairs
        .filter_map(|(value, base)| Some((*value)? / (*base).filter(|base| *base > 0.0)?))
        .filter(|ratio| ratio.is_finite())
        .collect()
}

fn sorted(sample: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<_> = sample.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median_of(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_spread(sample: &[f64], expected: Option<(f64, f64, f64)>) {
        let expected = expected.map(|(median, min, max)| Spread { median, min, max });
        assert_eq!(spread(sample), expected, "of {sample:?}");
    }

    #[test]
    fn spreads() {
        check_spread(&[], None);
        check_spread(&[f64::NAN], None);
        check_spread(&[3.0], Some((3.0, 3.0, 3.0)));
        check_spread(&[9.0, 1.0, 4.0], Some((4.0, 1.0, 9.0)));
        check_spread(&[9.0, 1.0, 4.0, 2.0], Some((3.0, 1.0, 9.0)));
        check_spread(&[2.0, f64::INFINITY, 1.0], Some((1.5, 1.0, 2.0)));
    }

    #[track_caller]
    fn check_percentile(p: f64, expected: u64) {
        let mut sample: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(percentile(&mut sample, p), Some(expected), "of p = {p}");
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        check_percentile(0.0, 1);
        check_percentile(0.5, 100);
        check_percentile(0.99, 198);
        check_percentile(0.999, 200);
        check_percentile(1.0, 200);
        assert_eq!(percentile(&mut [], 0.5), None);
        assert_eq!(percentile(&mut [7], 0.99), Some(7));
    }

    #[test]
    fn a_ratio_needs_both_values_of_its_round() {
        let values = [Some(2.0), None, Some(6.0), Some(1.0)];
        let bases = [Some(1.0), Some(1.0), Some(2.0), Some(0.0)];
        assert_eq!(ratios(&values, &bases), [2.0, 3.0]);
    }
}

//! What was measured, and the ratios of it.

use std::collections::BTreeMap;

use crate::figures::Spread;
use crate::rows::{Route, Row, Sample};

/// A figure of a measurement, where it has one.
pub(crate) type Figure = fn(&Sample) -> Option<f64>;

/// The samples of every row and route by their round, and what failed.
#[derive(Debug, Default)]
pub(crate) struct Results {
    samples: BTreeMap<(&'static str, Route), BTreeMap<u32, Sample>>,
    failures: BTreeMap<(&'static str, Route), Vec<String>>,
}

impl Results {
    pub(crate) fn add(&mut self, row: &Row, route: Route, round: u32, outcome: Result<Sample, String>) {
        match outcome {
            Ok(sample) => drop(self.samples.entry((row.name, route)).or_default().insert(round, sample)),
            Err(why) => self.failures.entry((row.name, route)).or_default().push(why),
        }
    }

    /// Those of a row on a route, in the order of the rounds.
    pub(crate) fn samples(&self, row: &Row, route: Route) -> impl Iterator<Item = &Sample> {
        self.samples.get(&(row.name, route)).into_iter().flat_map(BTreeMap::values)
    }

    /// What failed in a row on a route.
    pub(crate) fn failures(&self, row: &Row, route: Route) -> &[String] {
        self.failures.get(&(row.name, route)).map_or(&[], Vec::as_slice)
    }

    /// A figure of a row on a route.
    pub(crate) fn spread(&self, row: &Row, route: Route, figure: Figure) -> Option<Spread> {
        Spread::of(self.samples(row, route).filter_map(figure))
    }

    /// A figure on one route divided by that on another, in every round that has both: what disturbs the machine for
    /// a while then disturbs both.
    pub(crate) fn ratio(&self, row: &Row, route: Route, base: Route, figure: Figure) -> Option<Spread> {
        let (own, other) = (self.samples.get(&(row.name, route))?, self.samples.get(&(row.name, base))?);
        Spread::of(own.iter().filter_map(|(round, sample)| {
            let (above, below) = (figure(sample)?, figure(other.get(round)?)?);
            (below > 0.0).then(|| above / below)
        }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::rows::ROWS;

    pub(crate) fn sample(rate: f64) -> Sample {
        Sample {
            rate,
            proxy_cpu: Some(1e6 / rate),
            machine_cpu: 100.0,
            switches: Some(0.5),
            p50: Some(1_000.0),
            p99: None,
            memory: None,
            stolen_share: 0.0,
        }
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let mut results = Results::default();
        let row = &ROWS[0];
        // The machine was three times as slow in the second round, and the other route failed in the third.
        for (round, own, other) in [(1, 900.0, 1000.0), (2, 330.0, 300.0), (4, 1000.0, 1000.0)] {
            results.add(row, Route::Metako, round, Ok(sample(own)));
            results.add(row, Route::PgBouncer, round, Ok(sample(other)));
        }
        results.add(row, Route::Metako, 3, Ok(sample(5.0)));
        results.add(row, Route::PgBouncer, 3, Err("refused".to_owned()));
        let ratio = results.ratio(row, Route::Metako, Route::PgBouncer, |sample| Some(sample.rate)).unwrap();
        assert_eq!(ratio, Spread { median: 1.0, min: 0.9, max: 1.1 });
        assert_eq!(results.failures(row, Route::PgBouncer), ["refused"]);
        assert_eq!(results.ratio(row, Route::Metako, Route::PgBouncer, |sample| sample.p99), None);
        assert_eq!(results.ratio(row, Route::Metako, Route::Direct, |sample| Some(sample.rate)), None);
    }
}

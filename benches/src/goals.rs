//! What metako wants to reach, and whether it does.

use serde::Serialize;

use crate::results::{Figure, Results};
use crate::rows::{Route, Row};

/// From so many CPUs on the proxy has one to itself, and has to gain more by it.
const MANY_PROCESSORS: usize = 6;

/// Which way a bound points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    AtMost,
    AtLeast,
}

/// A bound for one figure of a row.
struct Goal {
    row: &'static str,
    what: &'static str,
    unit: &'static str,
    figure: Figure,
    /// The figure is divided by that of this route; otherwise it stands for itself.
    against: Option<Route>,
    side: Side,
    bound: f64,
    /// What would be better still.
    wish: Option<f64>,
}

/// How a goal came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) row: &'static str,
    /// `None` where it could not be judged.
    pub(crate) met: Option<bool>,
    /// The ratio (or the figure, where there is nothing to compare it with): the median.
    pub(crate) value: Option<f64>,
    pub(crate) bound: f64,
    pub(crate) text: String,
}

/// Judges every goal of the rows that were measured.
pub(crate) fn judge(results: &Results, rows: &[Row], processors: usize) -> Vec<Verdict> {
    let goals = goals(processors);
    let measured =
        goals.iter().filter_map(|goal| Some((goal, rows.iter().find(|row| row.name == goal.row)?)));
    measured.map(|(goal, row)| goal.judge(results, row)).collect()
}

fn goals(processors: usize) -> Vec<Goal> {
    let rate: Figure = |sample| Some(sample.rate);
    let cpu: Figure = |sample| sample.proxy_cpu;
    let p99: Figure = |sample| sample.p99;
    let pgbouncer = Some(Route::PgBouncer);
    let most = |row, what, unit, figure, bound, wish| Goal {
        row,
        what,
        unit,
        figure,
        against: pgbouncer,
        side: Side::AtMost,
        bound,
        wish,
    };
    let least = |row, against, bound| Goal {
        row,
        what: "rate",
        unit: "/s",
        figure: rate,
        against,
        side: Side::AtLeast,
        bound,
        wish: None,
    };
    let prepared = if processors >= MANY_PROCESSORS { 1.3 } else { 1.15 };
    let direct = Some(Route::Direct);
    vec![
        most("simple-16", "CPU of the proxy", "us", cpu, 1.0, Some(0.9)),
        most("prepared-16", "CPU of the proxy", "us", cpu, 0.85, Some(0.75)),
        least("simple-16", pgbouncer, 1.0),
        least("prepared-16", pgbouncer, prepared),
        least("simple-1", pgbouncer, 0.95),
        least("extended-1", pgbouncer, 0.95),
        least("prepared-1", pgbouncer, 0.95),
        most("rate", "p99", "us", p99, 1.0, None),
        most("simple-16", "p99", "us", p99, 1.0, None),
        most("prepared-16", "p99", "us", p99, 1.0, None),
        Goal { against: None, ..most("idle", "memory per client", "kB", |sample| sample.memory, 5.0, None) },
        least("connect", pgbouncer, 1.0),
        least("large", direct, 0.9),
        least("copy-out", direct, 0.9),
        least("copy-in", direct, 0.9),
    ]
}

impl Side {
    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::AtMost => value <= bound,
            Self::AtLeast => value >= bound,
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::AtMost => "at most",
            Self::AtLeast => "at least",
        }
    }
}

impl Goal {
    fn judge(&self, results: &Results, row: &Row) -> Verdict {
        let value = match self.against {
            Some(base) => results.ratio(row, Route::Metako, base, self.figure),
            None => results.spread(row, Route::Metako, self.figure),
        };
        let median = value.map(|spread| spread.median);
        Verdict {
            row: self.row,
            met: median.map(|value| self.side.holds(value, self.bound)),
            value: median,
            bound: self.bound,
            text: median.map_or_else(
                || format!("{}: {}: not comparable", row.title, self.what),
                |value| self.describe(results, row, value),
            ),
        }
    }

    fn describe(&self, results: &Results, row: &Row, value: f64) -> String {
        let figure = |route| {
            let spread = results.spread(row, route, self.figure);
            spread.map_or_else(|| "-".to_owned(), |spread| crate::report::digits(spread.median))
        };
        let (bound, side) = (self.bound, self.side.words());
        let wish = match self.wish {
            Some(wish) if self.side.holds(value, wish) => format!(", and {wish} as wished for"),
            Some(wish) => format!(", {wish} is wished for"),
            None => String::new(),
        };
        let own = figure(Route::Metako);
        match self.against {
            Some(base) => format!(
                "{}: {} {value:.3} x {}'s, {side} {bound}{wish} ({own} against {} {})",
                row.title,
                self.what,
                base.name(),
                figure(base),
                self.unit,
            ),
            None => format!("{}: {} {own} {}, {side} {bound}{wish}", row.title, self.what, self.unit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample;
    use crate::rows::ROWS;

    #[test]
    fn every_goal_is_about_a_row() {
        for goal in goals(2) {
            assert!(ROWS.iter().any(|row| row.name == goal.row), "{}", goal.row);
        }
    }

    fn verdict(row: &str, what: &str, own: f64, other: Option<f64>, processors: usize) -> Verdict {
        let row = *ROWS.iter().find(|known| known.name == row).unwrap();
        let mut results = Results::default();
        results.add(&row, Route::Metako, 1, Ok(sample(own)));
        if let Some(other) = other {
            results.add(&row, Route::PgBouncer, 1, Ok(sample(other)));
        }
        let verdicts = judge(&results, &[row], processors);
        verdicts.into_iter().find(|verdict| verdict.text.contains(what)).unwrap()
    }

    #[test]
    fn a_goal_is_met_at_its_bound() {
        let verdict = |own, processors| verdict("prepared-16", ": rate", own, Some(1000.0), processors);
        assert_eq!(verdict(1150.0, 2).met, Some(true));
        assert_eq!(verdict(1149.0, 2).met, Some(false));
        assert_eq!(verdict(1150.0, 6).met, Some(false));
        let text = verdict(1149.0, 2).text;
        assert_eq!(
            text,
            "prepared, 16 clients: rate 1.149 x PgBouncer's, at least 1.15 (1149 against 1000 /s)"
        );
    }

    #[test]
    fn less_cpu_is_better() {
        let verdict = |own| verdict("simple-16", "CPU", own, Some(1000.0), 2);
        assert_eq!(verdict(1000.0).met, Some(true));
        assert_eq!(verdict(990.0).met, Some(false));
        assert!(verdict(1200.0).text.contains("0.833 x PgBouncer's, at most 1, and 0.9 as wished for"));
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let verdict = verdict("prepared-16", "CPU", 1000.0, None, 2);
        assert_eq!((verdict.met, verdict.value), (None, None));
        assert!(verdict.text.ends_with("not comparable"), "{}", verdict.text);
    }
}

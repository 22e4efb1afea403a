//! The table for people, and the same as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use crate::figures::Spread;
use crate::goals::Verdict;
use crate::results::{Figure, Results};
use crate::rows::{Route, Row, Sample};

/// Under which conditions it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Conditions {
    pub(crate) seed: u64,
    pub(crate) rounds: u32,
    pub(crate) seconds: u64,
    pub(crate) processors: usize,
    pub(crate) kernel: String,
    pub(crate) postgresql: String,
    pub(crate) pgbouncer: String,
    pub(crate) metako: String,
    /// The load average of the last minute before the first measurement.
    pub(crate) load_before: String,
    /// Whether PgBouncer keeps prepared statements in transaction mode.
    pub(crate) pgbouncer_keeps_prepared: bool,
}

/// A number with as many digits as mean something.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

struct Column {
    head: &'static str,
    width: usize,
    figure: Figure,
    spread: bool,
}

/// The columns besides rate and ratios.
const COLUMNS: [Column; 6] = [
    Column { head: "proxy us", width: 19, figure: |sample| sample.proxy_cpu, spread: true },
    Column { head: "machine us", width: 11, figure: |sample| Some(sample.machine_cpu), spread: false },
    Column { head: "switches", width: 9, figure: |sample| sample.switches, spread: false },
    Column { head: "p50 us", width: 8, figure: |sample| sample.p50, spread: false },
    Column { head: "p99 us", width: 8, figure: |sample| sample.p99, spread: false },
    Column { head: "kB/client", width: 10, figure: |sample| sample.memory, spread: false },
];

const RATE: Figure = |sample| Some(sample.rate);

/// The table.
pub(crate) fn table(
    conditions: &Conditions,
    results: &Results,
    rows: &[Row],
    verdicts: &[Verdict],
) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}; {}; {}\n{} CPUs, Linux {}; load average before: {}; seed {}, {} rounds of {} s\n\
         Medians [smallest-largest] of the rounds; times and switches per unit; ratios are medians of the rounds' ratios.",
        conditions.postgresql,
        conditions.pgbouncer,
        conditions.metako,
        conditions.processors,
        conditions.kernel,
        conditions.load_before,
        conditions.seed,
        conditions.rounds,
        conditions.seconds,
    );
    for row in rows {
        let _ = write!(out, "\n{} (unit: {})\n  {:<10}{:>25}", row.title, row.unit, "", "units a second");
        let _ = write!(out, "{:>10}{:>12}", "x direct", "x PgBouncer");
        for column in &COLUMNS {
            let _ = write!(out, "{:>width$}", column.head, width = column.width);
        }
        out.push('\n');
        for route in Route::ALL.into_iter().filter(|route| row.fits(*route)) {
            line(&mut out, conditions, results, row, route);
        }
    }
    goals(&mut out, verdicts);
    out
}

fn line(out: &mut String, conditions: &Conditions, results: &Results, row: &Row, route: Route) {
    let _ = write!(out, "  {:<10}", route.name());
    if !comparable(conditions, row, route) {
        let _ = writeln!(out, "{:>25}", "not comparable");
        return;
    }
    if let [first, ..] = results.failures(row, route) {
        let count = results.failures(row, route).len();
        let _ = writeln!(out, "  {count} failed, the first: {}", first.replace('\n', " | "));
        if results.samples(row, route).next().is_none() {
            return;
        }
        let _ = write!(out, "  {:<10}", "");
    }
    let _ = write!(out, "{:>25}", cell(results.spread(row, route, RATE), true));
    for (base, width) in [(Route::Direct, 10), (Route::PgBouncer, 12)] {
        let ratio = if route == base { None } else { results.ratio(row, route, base, RATE) };
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", ratio.median));
        let _ = write!(out, "{ratio:>width$}");
    }
    for column in &COLUMNS {
        let value = cell(results.spread(row, route, column.figure), column.spread);
        let _ = write!(out, "{value:>width$}", width = column.width);
    }
    out.push('\n');
}

/// Whether a figure of that row on that route means what the other routes' figures mean.
pub(crate) fn comparable(conditions: &Conditions, row: &Row, route: Route) -> bool {
    route != Route::PgBouncer || conditions.pgbouncer_keeps_prepared || !row.needs_prepared()
}

fn cell(value: Option<Spread>, spread: bool) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if spread => {
            format!("{} [{}-{}]", digits(value.median), digits(value.min), digits(value.max))
        }
        Some(value) => digits(value.median),
    }
}

fn goals(out: &mut String, verdicts: &[Verdict]) {
    out.push_str("\nGoals\n");
    for verdict in verdicts {
        let outcome = match verdict.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "-",
        };
        let _ = writeln!(out, "  {outcome:<8}{}", verdict.text);
    }
    let judged = verdicts.iter().filter(|verdict| verdict.met.is_some()).count();
    let met = verdicts.iter().filter(|verdict| verdict.met == Some(true)).count();
    let _ = writeln!(out, "  {met} of {judged} met");
}

/// Every sample, the medians and the goals.
pub(crate) fn as_json(
    conditions: &Conditions,
    results: &Results,
    rows: &[Row],
    verdicts: &[Verdict],
) -> Value {
    let routes = |row: &Row| -> Vec<Value> {
        let fitting = Route::ALL.into_iter().filter(|route| row.fits(*route));
        fitting
            .map(|route| {
                json!({
                    "route": route,
                    "comparable": comparable(conditions, row, route),
                    "rate": results.spread(row, route, RATE),
                    "rate_to_direct": results.ratio(row, route, Route::Direct, RATE),
                    "rate_to_pgbouncer": results.ratio(row, route, Route::PgBouncer, RATE),
                    "proxy_cpu_to_pgbouncer": results.ratio(row, route, Route::PgBouncer, |sample| sample.proxy_cpu),
                    "samples": results.samples(row, route).collect::<Vec<&Sample>>(),
                    "failures": results.failures(row, route),
                })
            })
            .collect()
    };
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| json!({ "name": row.name, "title": row.title, "unit": row.unit, "routes": routes(row) }))
        .collect();
    json!({ "conditions": conditions, "rows": rows, "goals": verdicts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::judge;
    use crate::results::tests::sample;
    use crate::rows::ROWS;

    fn conditions(pgbouncer_keeps_prepared: bool) -> Conditions {
        Conditions {
            seed: 7,
            rounds: 1,
            seconds: 4,
            processors: 2,
            kernel: "6.1".to_owned(),
            postgresql: "PostgreSQL 15".to_owned(),
            pgbouncer: "PgBouncer 1.18.0".to_owned(),
            metako: "metako 0.1.0".to_owned(),
            load_before: "0.10".to_owned(),
            pgbouncer_keeps_prepared,
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(
            ["0.12", "9.99", "12.3", "123", "12345"],
            [0.123, 9.99, 12.34, 123.4, 12_345.4].map(digits).map(|text| text).each_ref().map(String::as_str)
        );
    }

    #[test]
    fn the_table_shows_rates_ratios_failures_and_goals() {
        let row = ROWS[0];
        let mut results = Results::default();
        results.add(&row, Route::Direct, 1, Ok(sample(4000.0)));
        results.add(&row, Route::PgBouncer, 1, Ok(sample(2000.0)));
        results.add(&row, Route::Metako, 1, Ok(sample(3000.0)));
        results.add(&row, Route::Metako, 2, Err("pgbench failed\nbadly".to_owned()));
        let verdicts = judge(&results, &[row], 2);
        let table = table(&conditions(true), &results, &[row], &verdicts);
        assert!(table.contains("1 failed, the first: pgbench failed | badly"), "{table}");
        assert!(table.contains("3000 [3000-3000]      0.75        1.50      333 [333-333]"), "{table}");
        assert!(table.contains("met     simple, 16 clients: rate 1.500 x PgBouncer's"), "{table}");
        let json = as_json(&conditions(true), &results, &[row], &verdicts);
        assert_eq!(json["rows"][0]["routes"][2]["rate_to_direct"]["median"], 0.75);
        assert_eq!(json["rows"][0]["routes"][2]["failures"][0], "pgbench failed\nbadly");
        assert_eq!(json["conditions"]["seed"], 7);
    }

    #[test]
    fn prepared_statements_are_not_compared_with_a_pgbouncer_that_loses_them() {
        let prepared = ROWS.iter().find(|row| row.name == "prepared-16").unwrap();
        assert!(!comparable(&conditions(false), prepared, Route::PgBouncer));
        assert!(comparable(&conditions(false), prepared, Route::Metako));
        assert!(comparable(&conditions(false), &ROWS[0], Route::PgBouncer));
        let table = table(&conditions(false), &Results::default(), &[*prepared], &[]);
        assert!(table.contains("not comparable"), "{table}");
    }
}

//! `make bench`: pgbench, COPY and idle clients on the way to PostgreSQL directly, through PgBouncer and through metako.
//! docs/performance.md says what the columns mean.

mod bulk;
mod counters;
mod error;
mod figures;
mod goals;
mod idle;
mod proxy;
mod report;
mod results;
mod rig;
mod rows;
mod transactions;
mod window;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;

use error::{BenchError, Result};
use figures::Dice;
use proxy::{Program, Proxy};
use report::{Conditions, comparable};
use results::Results;
use rig::{Access, RESULT_MEGABYTES, Rig};
use rows::{Protocol, ROWS, Route, Row, Sample, Work};
use transactions::{Load, measure, script};

/// In so many rounds idle clients are measured at most: memory varies little, and ten thousand log-ins take their time.
const IDLE_ROUNDS_MAX: u32 = 3;

/// Compares a direct connection, PgBouncer and metako.
#[derive(Debug, Parser)]
#[command(name = "metako-bench", version, about, max_term_width = 100)]
struct Options {
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each measurement lasts, in seconds.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Decides the order; random if left out.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these rows, with commas between; --list shows them.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    rows: Vec<String>,
    /// Show the rows and end.
    #[arg(long)]
    list: bool,
    /// How many clients are idle in the row `idle`.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=25_000))]
    idle_clients: u32,
    /// The scale of pgbench's tables.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    scale: u32,
    /// PgBouncer, 1.24 or newer.
    #[arg(long, env = "PGBOUNCER", value_name = "PROGRAM", required_unless_present = "train")]
    pgbouncer: Option<PathBuf>,
    /// metako; by default the one beside this program.
    #[arg(long, env = "METAKO", value_name = "PROGRAM")]
    metako: Option<PathBuf>,
    /// Compare nothing: have metako alone do each row, but for `idle`, with `split: off` and with `split: auto`, and end
    /// it in order. For a build that is optimized for what it then did (`make release`).
    #[arg(long)]
    train: bool,
    /// Writes every sample to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("metako-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every measurement could be made.
fn run(options: &Options) -> Result<bool> {
    let rows = chosen(&options.rows)?;
    if options.list {
        for row in ROWS {
            println!("{:<12} {}", row.name, row.title);
        }
        return Ok(true);
    }
    if rows.iter().any(|row| row.work == Work::Idle) {
        idle::raise_limit(options.idle_clients)?;
    }
    let beside = || Ok(std::env::current_exe()?.with_file_name("metako"));
    let metako = options.metako.clone().map_or_else(beside, Ok).map_err(BenchError::io("finding myself"))?;
    let metako = Program::metako(&metako)?;
    if options.train {
        return train(options, &metako, &rows).map(|()| true);
    }
    let mut bench = Bench::start(options, metako)?;
    eprintln!("== seed {}; {} rounds", bench.conditions.seed, options.rounds);
    let results = bench.rounds(options, &rows)?;
    let verdicts = goals::judge(&results, &rows, bench.conditions.processors);
    print!("{}", report::table(&bench.conditions, &results, &rows, &verdicts));
    if let Some(path) = &options.json {
        let json = report::as_json(&bench.conditions, &results, &rows, &verdicts);
        error::write(path, &format!("{json:#}\n"))?;
    }
    Ok(rows.iter().all(|row| Route::ALL.iter().all(|route| results.failures(row, *route).is_empty())))
}

/// The rows of these names, in the order of the table.
fn chosen(names: &[String]) -> Result<Vec<Row>> {
    if let Some(unknown) = names.iter().find(|name| ROWS.iter().all(|row| row.name != name.as_str())) {
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        return Err(BenchError::Unfit(format!("there is no row `{unknown}`: {}", known.join(", "))));
    }
    let wanted = |row: &Row| names.is_empty() || names.iter().any(|name| name == row.name);
    Ok(ROWS.into_iter().filter(wanted).collect())
}

fn start_proxies(rig: &Rig, programs: &[Program; 2]) -> [Result<Proxy>; 2] {
    programs.each_ref().map(|program| Proxy::start(rig, program, 0, "off"))
}

/// What decides how a build is optimized: each row for a moment.
fn train(options: &Options, metako: &Program, rows: &[Row]) -> Result<()> {
    eprintln!("== starting and filling PostgreSQL");
    let rig = Rig::start(options.scale)?;
    for split in ["off", "auto"] {
        let proxy = Proxy::start(&rig, metako, 0, split)?;
        for row in rows.iter().filter(|row| row.work != Work::Idle) {
            eprint!("== split: {split}, {}: ", row.title);
            let sample = sample(&rig, proxy.access(), row, Duration::from_secs(options.seconds))?;
            eprintln!("{} a second", report::digits(sample.rate));
        }
        proxy.end()?;
    }
    Ok(())
}

/// Everything that is measured, running.
struct Bench {
    // The proxies end before PostgreSQL does.
    pgbouncer: Proxy,
    metako: Proxy,
    programs: [Program; 2],
    rig: Rig,
    conditions: Conditions,
}

impl Bench {
    fn start(options: &Options, metako: Program) -> Result<Self> {
        let missing = || BenchError::Unfit("--pgbouncer names no program to compare with".to_owned());
        let pgbouncer = Program::pgbouncer(options.pgbouncer.as_deref().ok_or_else(missing)?)?;
        if pgbouncer.is_old() {
            eprintln!("== {} is older than 1.24, which metako's goals speak of", pgbouncer.version()?);
        }
        let load = error::read(Path::new("/proc/loadavg"))?;
        eprintln!("== starting and filling PostgreSQL");
        let rig = Rig::start(options.scale)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let version = rig.query(rig.primary().port(), "SHOW server_version")?.unwrap_or_default();
        let conditions = Conditions {
            seed: options.seed.unwrap_or(now.as_secs()),
            rounds: options.rounds,
            seconds: options.seconds,
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: error::read(Path::new("/proc/sys/kernel/osrelease"))?.trim_end().to_owned(),
            postgresql: format!("PostgreSQL {version}"),
            pgbouncer: pgbouncer.version()?,
            metako: metako.version()?,
            load_before: load.split(' ').next().unwrap_or_default().to_owned(),
            pgbouncer_keeps_prepared: pgbouncer.keeps_prepared(),
        };
        let programs = [pgbouncer, metako];
        let [pgbouncer, metako] = start_proxies(&rig, &programs);
        Ok(Self { pgbouncer: pgbouncer?, metako: metako?, programs, rig, conditions })
    }

    /// Rows in random order, and in each row the routes: what is compared is measured within seconds.
    fn rounds(&mut self, options: &Options, rows: &[Row]) -> Result<Results> {
        let mut results = Results::default();
        let mut dice = Dice::new(self.conditions.seed);
        for round in 1..=options.rounds {
            if round > 1 {
                // Processes of one program differ for as long as they live.
                let [pgbouncer, metako] = start_proxies(&self.rig, &self.programs);
                (self.pgbouncer, self.metako) = (pgbouncer?, metako?);
            }
            let mut order = rows.to_vec();
            dice.shuffle(&mut order);
            for row in order {
                let mut routes = Route::ALL;
                dice.shuffle(&mut routes);
                if row.work == Work::Idle && round > IDLE_ROUNDS_MAX {
                    continue;
                }
                for route in routes {
                    if !row.fits(route) || !comparable(&self.conditions, &row, route) {
                        continue;
                    }
                    eprint!("== round {round}: {}, {}: ", row.title, route.name());
                    let outcome = self.sample(options, &row, route).map_err(|error| error.to_string());
                    match &outcome {
                        Ok(sample) => eprintln!("{} a second", report::digits(sample.rate)),
                        Err(why) => eprintln!("{why}"),
                    }
                    self.check()?;
                    results.add(&row, route, round, outcome);
                }
            }
        }
        Ok(results)
    }

    /// A measurement may fail, but without PostgreSQL there is nothing to measure.
    fn check(&self) -> Result<()> {
        self.rig.query(self.rig.primary().port(), "SELECT 1").map(drop)
    }

    fn sample(&self, options: &Options, row: &Row, route: Route) -> Result<Sample> {
        let access = match route {
            Route::Direct => Access { port: self.rig.primary().port(), pid: None },
            Route::PgBouncer => self.pgbouncer.access(),
            Route::Metako => self.metako.access(),
        };
        if row.work == Work::Idle {
            // Memory that others have used before is not given back: a process of its own.
            let program = &self.programs[usize::from(route == Route::Metako)];
            let proxy = Proxy::start(&self.rig, program, options.idle_clients, "off")?;
            return idle::measure(proxy.access(), &self.rig.config(), options.idle_clients);
        }
        sample(&self.rig, access, row, Duration::from_secs(options.seconds))
    }
}

/// One measurement of a row that needs no proxy of its own.
fn sample(rig: &Rig, access: Access, row: &Row, seconds: Duration) -> Result<Sample> {
    let load = match row.work {
        Work::Select { protocol, clients, rate } => select(protocol, clients, rate),
        Work::Connect { clients } => {
            let options = ["--select-only", "--connect"].map(str::to_owned).to_vec();
            // The log's latency is that of the query alone.
            Load { options, clients, units: 1.0, latencies: false }
        }
        Work::LargeResults => Load {
            options: script(&rig.result_script()),
            clients: 1,
            units: RESULT_MEGABYTES,
            latencies: true,
        },
        Work::CopyOut => return bulk::copy_out(rig, access, seconds),
        Work::CopyIn => return bulk::copy_in(rig, access, seconds),
        Work::Idle => return Err(BenchError::Unfit("idle clients want a proxy of their own".to_owned())),
    };
    measure(rig, access, &load, seconds)
}

fn select(protocol: Protocol, clients: u32, rate: Option<u32>) -> Load {
    let mut options = vec!["--select-only".to_owned(), format!("--protocol={}", protocol.name())];
    options.extend(rate.map(|rate| format!("--rate={rate}")));
    Load { options, clients, units: 1.0, latencies: true }
}

//! The cases. Each is named for what PostgreSQL does; the same function runs against PostgreSQL and against metako.

mod copy;
mod flow;
mod hard;
mod portals;
mod settings;
mod start;
mod state;
mod statements;

use crate::stage::Stage;

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Stage<'_>),
    /// The first major version of PostgreSQL that has it.
    pub(crate) since: u32,
}

/// A table of cases from the names of functions: `name` or `name since 17`.
macro_rules! cases {
    ($($name:ident $(since $version:literal)?),+ $(,)?) => {
        pub(crate) const CASES: &[crate::cases::Case] = &[
            $(crate::cases::Case {
                name: stringify!($name),
                run: $name,
                since: 0 $(+ $version)?,
            }),+
        ];
    };
}
pub(crate) use cases;

/// A part of the list, with a heading.
pub(crate) struct Group {
    pub(crate) heading: &'static str,
    pub(crate) cases: &'static [Case],
}

/// All of them.
pub(crate) const GROUPS: &[Group] = &[
    Group { heading: "From the first byte to the first ReadyForQuery", cases: start::CASES },
    Group { heading: "The flow of messages", cases: flow::CASES },
    Group { heading: "Prepared statements", cases: statements::CASES },
    Group { heading: "Portals", cases: portals::CASES },
    Group { heading: "Settings", cases: settings::CASES },
    Group { heading: "Session state", cases: state::CASES },
    Group { heading: "COPY", cases: copy::CASES },
    Group { heading: "Cancels, deaths, and messages that lie", cases: hard::CASES },
];

/// All of them in one list.
pub(crate) fn all() -> Vec<&'static Case> {
    GROUPS.iter().flat_map(|group| group.cases).collect()
}

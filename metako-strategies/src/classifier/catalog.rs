//! What is known of PostgreSQL's own functions, relations and keywords.

use metako_core::plugin::Effects;

/// Functions and relations that are the same on every node and change nothing. Kept sorted.
#[derive(Debug)]
pub(super) struct Catalog {
    functions: Vec<&'static str>,
    relations: Vec<&'static str>,
    traceless: Vec<&'static str>,
}

impl Catalog {
    pub(super) fn new() -> Self {
        Self {
            functions: names(include_str!("functions.txt")),
            relations: names(include_str!("relations.txt")),
            traceless: names(include_str!("traceless.txt")),
        }
    }

    #[cfg(test)]
    pub(super) fn functions(&self) -> &[&'static str] {
        &self.functions
    }

    #[cfg(test)]
    pub(super) fn relations(&self) -> &[&'static str] {
        &self.relations
    }

    #[cfg(test)]
    pub(super) fn traceless(&self) -> &[&'static str] {
        &self.traceless
    }

    /// What a function of that name may leave behind in the session that calls it.
    pub(super) fn effects(&self, name: &str) -> Effects {
        match name {
            "pg_advisory_lock"
            | "pg_advisory_lock_shared"
            | "pg_try_advisory_lock"
            | "pg_try_advisory_lock_shared" => Effects::HOLDS,
            "pg_advisory_unlock" | "pg_advisory_unlock_shared" | "pg_advisory_unlock_all" => {
                Effects::RELEASES
            }
            "currval" | "lastval" => Effects::SEQUENCES,
            "setseed" | "pg_replication_origin_session_setup" | "dblink_connect" | "dblink_connect_u" => {
                Effects::STAYS
            }
            _ if self.knows_function(name) || self.traceless.binary_search(&name).is_ok() => Effects::NONE,
            _ => Effects::OPAQUE,
        }
    }

    /// Whether a function of that name only reads, and answers the same on each node that is up to date.
    pub(super) fn knows_function(&self, name: &str) -> bool {
        self.functions.binary_search(&name).is_ok()
    }

    /// Whether a `pg_` name that is not called is that of a schema, a replicated table, a view over such, or a type.
    pub(super) fn knows_relation(&self, name: &str) -> bool {
        self.relations.binary_search(&name).is_ok()
    }
}

fn names(list: &'static str) -> Vec<&'static str> {
    let mut names: Vec<_> =
        list.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_ascii_whitespace).collect();
    names.sort_unstable();
    names
}

/// Whether a function leaves something behind in the session that called it.
pub(super) fn changes_session(name: &str) -> bool {
    matches!(
        name,
        "set_config"
            | "setseed"
            | "pg_advisory_lock"
            | "pg_advisory_lock_shared"
            | "pg_try_advisory_lock"
            | "pg_try_advisory_lock_shared"
            | "pg_advisory_unlock"
            | "pg_advisory_unlock_shared"
            | "pg_advisory_unlock_all"
            | "pg_create_physical_replication_slot"
            | "pg_create_logical_replication_slot"
            | "pg_replication_origin_session_setup"
            | "pg_replication_origin_session_reset"
            | "dblink_connect"
            | "dblink_connect_u"
            | "dblink_disconnect"
    )
}

/// Whether a word is a keyword that cannot be the name of a function unless quoted: PostgreSQL's reserved keywords and
/// those that may only name columns; and LIKE, which as a function is the operator itself.
pub(super) fn is_syntax(word: &str) -> bool {
    SYNTAX.binary_search(&word).is_ok()
}

#[rustfmt::skip]
const SYNTAX: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "between", "bigint",
    "bit", "boolean", "both", "case", "cast", "char", "character", "check", "coalesce", "collate", "column",
    "constraint", "create", "current_catalog", "current_date", "current_role", "current_time",
    "current_timestamp", "current_user", "dec", "decimal", "default", "deferrable", "desc", "distinct",
    "do", "else", "end", "except", "exists", "extract", "false", "fetch", "float", "for", "foreign", "from",
    "grant", "greatest", "group", "grouping", "having", "in", "initially", "inout", "int", "integer",
    "intersect", "interval", "into", "lateral", "leading", "least", "like", "limit", "localtime",
    "localtimestamp", "national", "nchar", "none", "normalize", "not", "null", "nullif", "numeric",
    "offset", "on", "only", "or", "order", "out", "overlay", "placing", "position", "precision", "primary",
    "real", "references", "returning", "row", "select", "session_user", "setof", "smallint", "some",
    "substring", "symmetric", "table", "then", "time", "timestamp", "to", "trailing", "treat", "trim",
    "true", "union", "unique", "user", "using", "values", "varchar", "variadic", "when", "where", "window",
    "with", "xmlattributes", "xmlconcat", "xmlelement", "xmlexists", "xmlforest", "xmlnamespaces",
    "xmlparse", "xmlpi", "xmlroot", "xmlserialize", "xmltable",
];

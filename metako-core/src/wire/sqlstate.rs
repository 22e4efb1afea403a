//! The SQLSTATEs that metako gives or acts upon, by PostgreSQL's names.

/// 00000
pub const SUCCESSFUL_COMPLETION: &str = "00000";
/// 0A000
pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// 08000
pub const CONNECTION_EXCEPTION: &str = "08000";
/// 08006
pub const CONNECTION_FAILURE: &str = "08006";
/// 08007
pub const TRANSACTION_RESOLUTION_UNKNOWN: &str = "08007";
/// 08P01
pub const PROTOCOL_VIOLATION: &str = "08P01";
/// 22021
pub const CHARACTER_NOT_IN_REPERTOIRE: &str = "22021";
/// 22023
pub const INVALID_PARAMETER_VALUE: &str = "22023";
/// 25006
pub const READ_ONLY_SQL_TRANSACTION: &str = "25006";
/// 25P02
pub const IN_FAILED_SQL_TRANSACTION: &str = "25P02";
/// 26000
pub const INVALID_SQL_STATEMENT_NAME: &str = "26000";
/// 28000
pub const INVALID_AUTHORIZATION: &str = "28000";
/// 28P01
pub const INVALID_PASSWORD: &str = "28P01";
/// 3D000
pub const INVALID_CATALOG_NAME: &str = "3D000";
/// 40001
pub const SERIALIZATION_FAILURE: &str = "40001";
/// 40003
pub const STATEMENT_COMPLETION_UNKNOWN: &str = "40003";
/// 42501
pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// An identifier is too long.
pub const NAME_TOO_LONG: &str = "42622";
/// 42P05
pub const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
/// 53300
pub const TOO_MANY_CONNECTIONS: &str = "53300";
/// 53400
pub const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
/// 54000
pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
/// 55000
pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
/// 57014
pub const QUERY_CANCELED: &str = "57014";
/// 57P01
pub const ADMIN_SHUTDOWN: &str = "57P01";
/// 57P02
pub const CRASH_SHUTDOWN: &str = "57P02";
/// 57P03
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// XX000
pub const INTERNAL_ERROR: &str = "XX000";

//! What a client can send, as bytes.

/// Flush.
pub(crate) const FLUSH: &[u8] = b"H\0\0\0\x04";
/// Sync.
pub(crate) const SYNC: &[u8] = b"S\0\0\0\x04";
/// Terminate.
pub(crate) const TERMINATE: &[u8] = b"X\0\0\0\x04";
/// CopyDone.
pub(crate) const COPY_DONE: &[u8] = b"c\0\0\0\x04";

/// Protocol 3.0.
pub(crate) const V3_0: u32 = 0x0003_0000;
/// Protocol 3.2.
pub(crate) const V3_2: u32 = 0x0003_0002;

/// A message with its true length.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a test's message is short");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// A message that claims another length.
pub(crate) fn lying(tag: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// Several messages in one send.
pub(crate) fn batch(messages: &[&[u8]]) -> Vec<u8> {
    messages.concat()
}

fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), b"\0"].concat()
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &text(sql))
}

/// Parse without types.
pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    parse_typed(name, sql, &[])
}

pub(crate) fn parse_typed(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let count = u16::try_from(types.len()).expect("few types").to_be_bytes();
    let types = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
    message(b'P', &[text(name), text(sql), count.to_vec(), types].concat())
}

/// Bind of a statement without parameters to the unnamed portal.
pub(crate) fn bind(statement: &str) -> Vec<u8> {
    bind_to("", statement, &[])
}

/// Bind with text parameters and text results.
pub(crate) fn bind_to(portal: &str, statement: &str, values: &[Option<&str>]) -> Vec<u8> {
    let count = u16::try_from(values.len()).expect("few values").to_be_bytes();
    let mut body = [text(portal), text(statement), vec![0, 0], count.to_vec()].concat();
    for value in values {
        match value {
            Some(value) => {
                body.extend_from_slice(&u32::try_from(value.len()).expect("short").to_be_bytes());
                body.extend_from_slice(value.as_bytes());
            }
            None => body.extend_from_slice(&[0xff; 4]),
        }
    }
    body.extend_from_slice(&[0, 0]);
    message(b'B', &body)
}

/// Bind with all results in binary.
pub(crate) fn bind_binary(portal: &str, statement: &str) -> Vec<u8> {
    message(b'B', &[&text(portal)[..], &text(statement), &[0, 0, 0, 0, 0, 1, 0, 1]].concat())
}

pub(crate) fn describe_statement(name: &str) -> Vec<u8> {
    message(b'D', &[b"S", &text(name)[..]].concat())
}

pub(crate) fn describe_portal(name: &str) -> Vec<u8> {
    message(b'D', &[b"P", &text(name)[..]].concat())
}

/// Execute of the unnamed portal, to its end.
pub(crate) fn execute() -> Vec<u8> {
    execute_some("", 0)
}

/// Execute of at most `rows` rows.
pub(crate) fn execute_some(portal: &str, rows: i32) -> Vec<u8> {
    message(b'E', &[&text(portal)[..], &rows.to_be_bytes()].concat())
}

pub(crate) fn close_statement(name: &str) -> Vec<u8> {
    message(b'C', &[b"S", &text(name)[..]].concat())
}

pub(crate) fn close_portal(name: &str) -> Vec<u8> {
    message(b'C', &[b"P", &text(name)[..]].concat())
}

/// Parse, Bind and Execute of the unnamed statement.
pub(crate) fn run(sql: &str) -> Vec<u8> {
    [parse("", sql), bind(""), execute()].concat()
}

pub(crate) fn copy_data(data: &[u8]) -> Vec<u8> {
    message(b'd', data)
}

pub(crate) fn copy_fail(reason: &str) -> Vec<u8> {
    message(b'f', &text(reason))
}

/// FunctionCall with text arguments and a text result.
pub(crate) fn function_call(function: u32, arguments: &[&str]) -> Vec<u8> {
    let count = u16::try_from(arguments.len()).expect("few arguments").to_be_bytes();
    let mut body = [&function.to_be_bytes()[..], &[0, 0], &count].concat();
    for argument in arguments {
        body.extend_from_slice(&u32::try_from(argument.len()).expect("short").to_be_bytes());
        body.extend_from_slice(argument.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    message(b'F', &body)
}

/// A packet without a tag: start-up, SSLRequest and their kind.
pub(crate) fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).expect("a test's packet is short");
    [&length.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}

/// StartupMessage.
pub(crate) fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body: Vec<u8> =
        parameters.iter().flat_map(|(name, value)| [text(name), text(value)].concat()).collect();
    body.push(0);
    packet(version, &body)
}

pub(crate) fn ssl_request() -> Vec<u8> {
    packet(80_877_103, b"")
}

pub(crate) fn gssenc_request() -> Vec<u8> {
    packet(80_877_104, b"")
}

pub(crate) fn cancel_request(process: u32, secret: &[u8]) -> Vec<u8> {
    packet(80_877_102, &[&process.to_be_bytes()[..], secret].concat())
}

/// PasswordMessage and its kind.
pub(crate) fn password(body: &[u8]) -> Vec<u8> {
    message(b'p', body)
}

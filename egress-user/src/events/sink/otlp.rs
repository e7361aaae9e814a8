//! An OpenTelemetry collector: log records by OTLP over HTTP, as protobuf (the OTLP specification, "OTLP/HTTP").
//!
//! Its connections are those of any process: the policy has to allow them.

use std::{io, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Uri, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use prost::Message;
use serde_json::Value;
use tokio::{net::TcpStream, runtime::Runtime};

use super::{
    Write,
    fields::{Severity, flat, severity},
};
use crate::events::{Event, Style, Timestamp, line};

/// How long one request may take, the connection included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Events of this long go in one request.
const LINGER: Duration = Duration::from_millis(500);
/// The longest answer that is read.
const ANSWER_MAX: usize = 64 << 10;
/// OTLP's path for logs, where the URL has none.
const PATH: &str = "/v1/logs";

/// What the semantic conventions call a field of ours; the others are `egress.` and their own path.
const NAMES: &[(&str, &str)] = &[
    ("source", "source.address"),
    ("source_port", "source.port"),
    ("destination", "destination.address"),
    ("destination_port", "destination.port"),
    ("protocol", "network.transport"),
    ("interface", "network.interface.name"),
    ("query", "dns.question.name"),
    ("process.pid", "process.pid"),
    ("process.ppid", "process.parent_pid"),
    ("process.comm", "process.command"),
    ("process.exe", "process.executable.path"),
    ("process.uid", "process.user.id"),
    ("container.id", "container.id"),
    ("container.runtime", "container.runtime.name"),
    ("pod_uid", "k8s.pod.uid"),
    ("pod_namespace", "k8s.namespace.name"),
    ("pod_name", "k8s.pod.name"),
];

/// The endpoint that a URL names.
pub(super) fn endpoint(url: &str) -> Result<Uri, String> {
    let wrong = |why: &str| format!("`{url}` is no OTLP endpoint: {why}, like otlp:http://127.0.0.1:4318");
    let uri: Uri = url.parse().map_err(|_| wrong("give a URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(wrong("TLS is not spoken here; send to a collector on this node, by http")),
        _ => return Err(wrong("it starts with http://")),
    }
    let authority = uri.authority().ok_or_else(|| wrong("name a host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("user and password are not sent"));
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = if path == "/" { PATH } else { path };
    format!("http://{authority}{path}").parse().map_err(|_| wrong("give a URL"))
}

/// A collector's endpoint.
pub(super) struct Otlp {
    uri: Uri,
    runtime: Runtime,
    host: String,
}

impl Otlp {
    pub(super) fn new(uri: Uri) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { uri, runtime, host })
    }
}

impl Write for Otlp {
    fn write(&mut self, events: &[Arc<Event>]) -> io::Result<u64> {
        let body = request(events, &self.host).encode_to_vec();
        let send = post(&self.uri, body, events.len() as u64);
        match self.runtime.block_on(async { tokio::time::timeout(TIMEOUT, send).await }) {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    fn linger(&self) -> Duration {
        LINGER
    }
}

/// How many of the `count` records the collector refused for good; an error where it is worth another try.
async fn post(uri: &Uri, body: Vec<u8>, count: u64) -> io::Result<u64> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the request: nobody else has the sender.
    let driver = tokio::spawn(connection);
    let request = Request::post(uri.path_and_query().map_or(PATH, |path| path.as_str()))
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::CONTENT_TYPE, "application/x-protobuf")
        .header(header::USER_AGENT, concat!("egress/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(io::Error::other)?.to_bytes();
    driver.abort();
    // OTLP/HTTP, "Retryable Response Codes": what else fails would fail again.
    if matches!(status.as_u16(), 429 | 502 | 503 | 504) {
        return Err(io::Error::other(format!("the collector answers {status}")));
    }
    if !status.is_success() {
        tracing::warn!(%status, count, "the collector refuses events for good: they are lost");
        return Ok(count);
    }
    if let Some(partial) = ExportLogsServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success)
        && partial.rejected_log_records > 0
    {
        // The specification: they must not be sent again.
        tracing::warn!(rejected = partial.rejected_log_records, message = %partial.error_message.escape_debug(), "the collector rejects events");
        return Ok(u64::try_from(partial.rejected_log_records).unwrap_or_default());
    }
    Ok(0)
}

/// One request with every event as a log record.
pub(super) fn request(events: &[Arc<Event>], host: &str) -> ExportLogsServiceRequest {
    let resource = Resource {
        attributes: vec![
            attribute("service.name", text("egress")),
            attribute("service.version", text(env!("CARGO_PKG_VERSION"))),
            attribute("host.name", text(host)),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "egress".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let log_records = events.iter().map(|event| record(event)).collect();
    let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records, ..ScopeLogs::default() }];
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs { resource: Some(resource), scope_logs, ..ResourceLogs::default() }],
    }
}

fn record(event: &Event) -> LogRecord {
    let (number, word) = match severity(event) {
        Severity::Error => (SeverityNumber::Error, "ERROR"),
        Severity::Warning => (SeverityNumber::Warn, "WARN"),
        Severity::Notice => (SeverityNumber::Info2, "INFO2"),
        Severity::Info => (SeverityNumber::Info, "INFO"),
    };
    let mut attributes = Vec::new();
    let mut kind = String::new();
    for (path, value) in flat(event) {
        match path.as_str() {
            "time" => {}
            "kind" => value.as_str().unwrap_or_default().clone_into(&mut kind),
            path => {
                let name = NAMES.iter().find(|(ours, _)| *ours == path).map(|(_, theirs)| (*theirs).to_owned());
                attributes.push(attribute(&name.unwrap_or_else(|| format!("egress.{path}")), any(value)));
            }
        }
    }
    if let Some(destination) = event.refusal().and_then(|refusal| refusal.destination) {
        attributes.push(attribute("network.type", text(if destination.is_ipv4() { "ipv4" } else { "ipv6" })));
    }
    let body = line(event, Style::default());
    LogRecord {
        time_unix_nano: event.time.0.saturating_mul(1000),
        observed_time_unix_nano: Timestamp::now().0.saturating_mul(1000),
        severity_number: number.into(),
        severity_text: word.to_owned(),
        body: Some(text(body.split_once(' ').map_or(body.as_str(), |(_, rest)| rest))),
        attributes,
        event_name: format!("egress.{kind}"),
        ..LogRecord::default()
    }
}

fn text(value: &str) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }
}

fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn any(value: Value) -> AnyValue {
    let value = match value {
        Value::Bool(yes) => any_value::Value::BoolValue(yes),
        Value::Number(number) => match number.as_i64() {
            Some(number) => any_value::Value::IntValue(number),
            // Cookies and inode numbers above 2^63 have no integer in OTLP.
            None => any_value::Value::StringValue(number.to_string()),
        },
        Value::String(text) => any_value::Value::StringValue(text),
        Value::Array(items) => {
            any_value::Value::ArrayValue(ArrayValue { values: items.into_iter().map(any).collect() })
        }
        other => any_value::Value::StringValue(other.to_string()),
    };
    AnyValue { value: Some(value) }
}

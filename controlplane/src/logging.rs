//! The log: lines on standard error, as text or JSON.
//!
//! Owns the subscriber and its filter. Callers log names, ids and numbers, never a token, a hash or a document.

use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Installs the process-wide log. Fails on a bad filter, or when another log is installed already.
pub fn install(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let registry = tracing_subscriber::registry().with(filter.parse::<EnvFilter>()?);
    match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
            registry.with(lines).try_init()?;
        }
        LogFormat::Json => {
            let lines = fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_writer(std::io::stderr);
            registry.with(lines).try_init()?;
        }
    }
    report_panics();
    Ok(())
}

/// A panic becomes a line of the log, with its thread and place.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(
            thread = thread.name().unwrap_or("?"),
            place,
            "panic: {message}"
        );
    }));
}

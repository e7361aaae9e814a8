//! Standard output.

use std::{
    io::{self, IsTerminal, Write as _},
    sync::Arc,
};

use super::{Form, Write};
use crate::events::{Event, Style, line};

/// Standard output, as lines for people or as JSON lines.
pub(super) struct Stdout {
    pretty: Option<Style>,
}

impl Stdout {
    pub(super) fn new(form: Form) -> Self {
        let out = io::stdout();
        let pretty = form == Form::Pretty || (form == Form::Detect && out.is_terminal());
        Self { pretty: pretty.then(|| Style::detect(&out)) }
    }
}

impl Write for Stdout {
    fn write(&mut self, events: &[Arc<Event>]) -> io::Result<u64> {
        let mut text = Vec::new();
        for event in events {
            match self.pretty {
                Some(style) => text.extend_from_slice(line(event, style).as_bytes()),
                None => serde_json::to_writer(&mut text, &**event)?,
            }
            text.push(b'\n');
        }
        let mut out = io::stdout().lock();
        out.write_all(&text)?;
        out.flush()?;
        Ok(0)
    }
}

//! The screen. At 80 columns all is shown; narrower ones lose the picture, the reason, then the total.

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Style},
    text::Line,
    widgets::{Row as Cells, Table},
};

use super::{
    state::State,
    table::{HISTORY, Sort},
};

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns of the picture: the last so many seconds.
const PICTURE: usize = 16;

pub fn draw(frame: &mut Frame<'_>, state: &State, color: bool) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    let paint = |style: Style| if color { style } else { Style::new() };
    let table = state.table();
    let mut second = format!("{} in {}", table.total, span(state.now));
    if table.others > 0 {
        second += &format!(", {} of others", table.others);
    }
    if state.lost > 0 {
        second += &format!(", {} events lost", state.lost);
    }
    let (second, style) = match &state.trouble {
        Some(trouble) => (trouble.clone(), Style::new().fg(Color::Red)),
        None => (second, Style::new()),
    };
    let head_lines =
        vec![Line::from(state.view.title()).style(Style::new().bold()), Line::from(second).style(paint(style))];
    frame.render_widget(ratatui::text::Text::from(head_lines), head);

    let width = usize::from(body.width);
    let (with_total, with_note, with_picture) = (width >= 32, width >= 56, width >= 72);
    let mut widths = vec![Constraint::Fill(1), Constraint::Length(7)];
    let mut titles = vec![mark("NAME", state.sort == Sort::Name), mark("RATE/s", state.sort == Sort::Rate)];
    for (with, title, length) in [
        (with_total, mark("TOTAL", state.sort == Sort::Total), 8),
        (with_note, "WHY".to_owned(), 16),
        (with_picture, "LAST 16 s".to_owned(), PICTURE as u16),
    ] {
        if with {
            widths.push(Constraint::Length(length));
            titles.push(title);
        }
    }
    let rows = table.sorted(state.sort, state.now).into_iter().skip(state.offset).take(usize::from(body.height));
    let rows = rows.map(|(name, row)| {
        let mut cells = vec![name.to_owned(), number(row.rate(state.now))];
        if with_total {
            cells.push(number(row.total as f64));
        }
        if with_note {
            cells.push(row.note.clone());
        }
        if with_picture {
            cells.push(picture(&row.history(state.now)[HISTORY - PICTURE..]));
        }
        Cells::new(cells)
    });
    let header = Cells::new(titles).style(paint(Style::new().fg(Color::Cyan)));
    frame.render_widget(Table::new(rows, widths).header(header), body);
    let keys = if width >= 64 {
        "d destination  p process  c container  r rule  s sort  q quit"
    } else {
        "q quit  s sort  dpcr"
    };
    frame.render_widget(Line::from(keys).style(paint(Style::new().fg(Color::DarkGray))), foot);
}

fn mark(title: &str, sorted: bool) -> String {
    format!("{title}{}", if sorted { "*" } else { "" })
}

/// At most six columns.
fn number(value: f64) -> String {
    match value {
        v if v >= 1e12 => format!("{:.1e}", v),
        v if v >= 999_950_000.0 => format!("{:.1}G", v / 1e9),
        v if v >= 999_950.0 => format!("{:.1}M", v / 1e6),
        v if v >= 99_995.0 => format!("{:.0}k", v / 1e3),
        v if v.fract() == 0.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

fn span(seconds: u64) -> String {
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds / 60) }
}

/// Each second against the busiest one shown; a space where nothing was.
fn picture(counts: &[u64]) -> String {
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let bar = |count: &u64| {
        if *count == 0 { ' ' } else { BARS[(u128::from(count - 1) * 8 / u128::from(most)) as usize] }
    };
    counts.iter().map(bar).collect()
}

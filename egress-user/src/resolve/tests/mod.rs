mod day;
mod lives;
mod private;
mod refresher;
mod schedule;
mod server;
mod system;
mod wire;

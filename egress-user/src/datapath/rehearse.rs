//! A packet judged twice: by an attached program itself, by BPF_PROG_TEST_RUN, and by the decision on the host over what
//! the maps hold. Neither writes anything down: see [`Rehearsal`].

mod names;
mod packet;

use std::os::fd::AsFd as _;

use egress_ebpf::{
    abi::{Config, ORIGIN_IN, PROTO_TCP, PROTO_UDP, Rehearsal, ZONE_SOCKET, ZONE_UPLINK},
    decision::{self, Destination, Sender, SocketKind, Verdict, outward_key},
    packet::{Packet, parse},
    reason::Reason,
};

pub use self::packet::packet;
use super::{Datapath, Error, boot_ticks, sys};

/// The loopback interface's index.
const LOOPBACK: u32 = 1;
/// A policy or a tick that ends between the two judgements makes them differ: then they are asked again.
const TRIES: usize = 3;

/// A packet that is to be judged at an attach point.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The program: `socket_egress`, `uplink_egress` or `uplink_egress_l3`.
    pub program: &'static str,
    /// The interface that it leaves by.
    pub ifindex: u32,
    /// The packet, from its IP header on.
    pub packet: &'a [u8],
}

/// What the two said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// The program's verdict.
    pub kernel: Verdict,
    /// Whether the packet would go on, by what the program returned.
    pub goes_on: bool,
    /// The model's verdict.
    pub model: Verdict,
    /// Whether it would go on by the model's: in audit mode everything does.
    pub model_goes_on: bool,
    /// The generation that judged.
    pub generation: u32,
}

impl Rehearsed {
    /// Whether both say the same: verdict, reason, and the grant that it passes by.
    pub fn agrees(&self) -> bool {
        let both = |verdict: Verdict| (verdict.reason, verdict.grant);
        self.goes_on == self.model_goes_on && both(self.kernel) == both(self.model)
    }
}

impl Datapath {
    /// Judges a packet by the attached program and by the model. `None` before the first policy.
    ///
    /// # Errors
    /// That the program cannot be run, or does not tell its verdict.
    pub fn rehearse(&mut self, scene: &Scene<'_>) -> Result<Option<Rehearsed>, Error> {
        let mut said = None;
        for _ in 0..TRIES {
            said = self.rehearse_once(scene)?;
            if said.is_none_or(|said| said.agrees()) {
                break;
            }
        }
        Ok(said)
    }

    /// The kernel's id of a program of this object.
    ///
    /// # Errors
    /// That there is none of this name, or that the kernel does not say.
    pub fn program_id(&mut self, name: &'static str) -> Result<u32, Error> {
        sys::program_id(self.object.program(name)?).map_err(|source| Error::map("look at", "programs", source))
    }

    fn rehearse_once(&mut self, scene: &Scene<'_>) -> Result<Option<Rehearsed>, Error> {
        let Some(config) = self.config_now(boot_ticks())? else { return Ok(None) };
        let enforce = config.has(Config::ENFORCE);
        let (kernel, goes_on) = self.by_the_program(scene, &config)?;
        let model = self.by_the_model(scene, &config)?;
        let model_goes_on = model.reason.passes() || !enforce;
        Ok(Some(Rehearsed { kernel, goes_on, model, model_goes_on, generation: config.generation }))
    }

    fn by_the_program(&mut self, scene: &Scene<'_>, config: &Config) -> Result<(Verdict, bool), Error> {
        let table = self.object.table::<u32, Rehearsal>("REHEARSAL")?;
        let token = rand::random::<u64>().max(1);
        let kind = kind(scene.packet).number();
        let rehearsing = Config { flags: config.flags | Config::REHEARSAL, ..*config };
        let at_socket = scene.program == "socket_egress";
        // The kernel takes 14 bytes off as an Ethernet header, and gives them back to what is attached to interfaces.
        let mut frame = Vec::with_capacity(14 + scene.packet.len());
        if scene.program != "uplink_egress_l3" {
            let ethertype: u16 = if is_v4(scene.packet) { 0x0800 } else { 0x86dd };
            frame.extend([0; 12]);
            frame.extend(ethertype.to_be_bytes());
        }
        frame.extend(scene.packet);
        let program = self.object.program(scene.program)?;
        table.set(&0, &Rehearsal { token, kind, pad: 0 }, sys::ANY)?;
        let index = config.generation & 1;
        let result = self.configs.set(&index, &rehearsing, sys::ANY).and_then(|()| {
            let (mark, priority) = ((token >> 32) as u32, token as u32);
            sys::test_run_marked(program.as_fd(), &frame, scene.ifindex, mark, priority)
                .map(|(returned, left_mark, left_priority)| {
                    ((left_mark, left_priority) != (mark, priority)).then_some((returned, left_mark, left_priority))
                })
                .map_err(|source| Error::map("run", "an attached program", source))
        });
        // Before anything else: until then every packet looks whether it is the one.
        let ended = self.configs.set(&index, config, sys::ANY).and(table.set(&0, &Rehearsal::default(), sys::ANY));
        let told = result?;
        ended?;
        let reason = told.and_then(|(_, _, priority)| u8::try_from(priority).ok()).and_then(Reason::from_number);
        let (Some((returned, grant, _)), Some(reason)) = (told, reason) else {
            return Err(Error::Untold(scene.program));
        };
        // 1 lets a cgroup's packet pass; TC_ACT_SHOT is 2.
        let goes_on = if at_socket { returned == 1 } else { returned != 2 };
        Ok((Verdict::by(reason, grant, 0), goes_on))
    }

    fn by_the_model(&self, scene: &Scene<'_>, config: &Config) -> Result<Verdict, Error> {
        let now = boot_ticks();
        let packet = match parse(scene.packet, 0) {
            Ok(packet) => packet,
            Err(reason) => return Ok(Verdict::plain(reason)),
        };
        let flows = [outward_key(&packet, ZONE_SOCKET), outward_key(&packet, ZONE_UPLINK)];
        let tables = self.snapshot(config, &Destination::of(&packet), &flows)?;
        let about = |error: &Packet| decision::quoted_origin(&tables, config, scene.packet, 0, error, now);
        let mut verdict = if scene.program == "socket_egress" {
            let sender = Sender { kind: kind(scene.packet), cookie: 0, loopback: scene.ifindex == LOOPBACK };
            let about_arrival = |error: &Packet| about(error) == ORIGIN_IN;
            decision::leaves_socket(&tables, config, about_arrival, &packet, &sender, None, now)
        } else {
            decision::leaves_uplink(&tables, config, about, &packet, true, now)
        };
        verdict.trust();
        if verdict.reason == Reason::Dns {
            let reason = self.question(config, scene.packet, &packet, now)?;
            return Ok(if reason.passes() { verdict } else { Verdict::plain(reason) });
        }
        Ok(verdict)
    }
}

/// The socket that a packet of its protocol leaves by.
fn kind(packet: &[u8]) -> SocketKind {
    match parse(packet, 0).map(|packet| packet.proto) {
        Ok(PROTO_TCP) => SocketKind::STREAM,
        Ok(PROTO_UDP) => SocketKind::DATAGRAM,
        _ => SocketKind::RAW,
    }
}

fn is_v4(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 4)
}

//! How programs get into the kernel, and to interfaces: to the loopback of network namespaces of their own.

use std::{os::fd::AsFd as _, thread};

use nix::sched::{CloneFlags, unshare};

use super::super::{attach_ahead, clsact, *};

fn object() -> Object {
    let sizes = Sizes { addresses: 64, prefixes: 64, classes: 64, grants: 64, names: 64, inner: 64, flows: 64 };
    Object::load(&sizes, None).expect("the object loads: needs root")
}

/// On a thread that is in a network namespace of its own; threads that it starts are too.
fn apart(test: impl FnOnce() + Send + 'static) {
    let test = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        test();
    };
    thread::spawn(test).join().unwrap();
}

#[test]
fn programs_that_are_loaded_beside_are_those_that_are_given() {
    let object = object();
    let names = ["connect4", "control", "socket_create", "connect6"];
    let loading = object.load_beside(names.to_vec());
    let early = names.map(|name| sys::program_id(object.program(name).unwrap()).unwrap());
    loading.finish();
    assert_eq!(names.map(|name| sys::program_id(object.program(name).unwrap()).unwrap()), early, "each is loaded once");
    // What is not begun is left when a start fails.
    drop(object.load_beside(vec!["no_such_program"; 1000]));
}

#[test]
fn links_made_ahead_are_taken() {
    apart(|| {
        let mut object = object();
        let loopback = Uplink { judges: true, hears: true, ..Uplink::loopback() };
        let interfaces = [loopback.clone()];
        let mut ahead = attach_ahead(&object, &interfaces, None).finish();
        let ids = ahead.iter().map(|made| sys::link_info(made.link.as_fd()).unwrap().id).collect::<Vec<_>>();
        let attached = attach_uplink(&mut object, &loopback, None, &mut ahead).unwrap();
        assert!(ahead.is_empty() && attached.iter().all(Attached::present));
        assert_eq!(attached.iter().map(|point| point.hook).collect::<Vec<_>>(), ["uplink_ingress", "uplink_egress"]);
        assert_eq!(attached.iter().map(|point| point.info().unwrap().id).collect::<Vec<_>>(), ids);
    });
}

/// The way of kernels before 6.6, which this one has too.
#[test]
fn a_filter_holds_the_program_of_its_name() {
    apart(|| {
        let object = object();
        let filter = clsact::attach(&object, DENIAL_HOOK, "lo", 1).unwrap();
        assert!(filter.present());
        // In its own place, as a later daemon does it.
        assert!(clsact::attach(&object, DENIAL_HOOK, "lo", 1).unwrap().present());
        assert_eq!(clsact::remove("lo"), ["filter denial_egress of lo"]);
        assert!(!filter.present());
    });
}

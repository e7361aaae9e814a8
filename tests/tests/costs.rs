//! What each program costs an older kernel's verifier: bounds, a little above what they are on 6.18 and on 6.1, so that growth is seen.

use egress_tests::bench::programs::shape;
use egress_user::datapath::{Object, Sizes};

/// The program, the instructions that the verifier may walk, and bytes of stack, added up over
/// every chain of calls that stands in the code.
const BOUNDS: [(&str, u32, u32); 14] = [
    ("denial_egress", 3_900, 208),
    ("socket_egress", 17_600, 512),
    ("socket_ingress", 15_200, 480),
    ("uplink_egress", 17_000, 512),
    ("uplink_egress_l3", 16_100, 512),
    ("uplink_ingress", 14_600, 464),
    ("uplink_ingress_l3", 14_300, 464),
    ("workload_ingress", 19_900, 480),
    ("connect4", 4_250, 384),
    ("connect6", 4_350, 384),
    ("sendmsg4", 4_400, 384),
    ("sendmsg6", 4_450, 384),
    ("socket_create", 250, 96),
    ("control", 2_950, 352),
];

#[test]
fn programs_stay_within_what_older_kernels_take() {
    let sizes = Sizes { addresses: 16, prefixes: 16, classes: 16, grants: 16, names: 16, inner: 16, flows: 65536 };
    let object = Object::load(&sizes, None).expect("the object loads: needs root");
    let mut grown = Vec::new();
    for (program, verified, stack) in BOUNDS {
        let shape = shape(object.program(program).expect("it loads")).expect("the kernel tells");
        println!("{program}: {shape:?}");
        assert!(shape.verified > 0 && shape.stack > 0, "{program}: {shape:?}");
        if shape.verified > verified || shape.stack > stack {
            grown.push(format!("{program}: {shape:?}, bounds {verified} and {stack}"));
        }
    }
    assert!(grown.is_empty(), "{}", grown.join("\n"));
}

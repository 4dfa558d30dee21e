//! A test for each place where the process can be made to end. In: all places, and a name for each test, which calls `survives` of
//! the file that asks. Never: a place without a test.

macro_rules! at_each_point {
    ($all:expr; $($name:ident: $point:literal,)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            survives($point).await;
        })*

        #[test]
        fn every_point_has_a_test() {
            assert_eq!($all, [$($point),*]);
        }
    };
}

pub(crate) use at_each_point;

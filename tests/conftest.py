pytest_plugins = [
    "tests.fix_cluster", "tests.fix_master", "tests.fix_memory", "tests.fix_netns", "tests.fix_pg", "tests.fix_proxy",
    "tests.fix_room", "tests.fix_sdk",
]  # fmt: skip

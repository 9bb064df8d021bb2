pytest_plugins = [
    "tests.fix_cluster", "tests.fix_faketime", "tests.fix_log", "tests.fix_master", "tests.fix_memory", "tests.fix_netns",
    "tests.fix_pg", "tests.fix_pooler", "tests.fix_proxy", "tests.fix_room", "tests.fix_sdk", "tests.fix_spans",
    "tests.fix_tmpfs",
]  # fmt: skip

pytest_plugins = ["tests.fix_master", "tests.fix_pg", "tests.fix_room", "tests.fix_sdk"]

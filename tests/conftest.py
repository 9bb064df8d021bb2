pytest_plugins = ["tests.fix_master", "tests.fix_pg", "tests.fix_proxy", "tests.fix_room"]

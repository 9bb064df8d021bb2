"""`make demo`: 3,000 mails, then a platform's runs, through real processes, each with a worker killed on the way and a proof.

    mails.jsonl     the mails; made once by make_mails.py
    smtp_server     the mail server, a process that writes down what it accepts before it says so
    processes       starting and ending everything, by pid
    verdict         what the server must hold, and what it holds instead; pure
    show            progress and summary
    pipeline        the second act: events, runs and tasks, with an endpoint
    endpoint        that endpoint in Python, where the published SDK cannot run
    stack           a platform's processes, also for bench/pipeline.py and the tests of the pipeline
    mails           the first act: start, insert, watch, kill, judge
    __main__        the play, and the clean-up

Everything it writes is in `.wqcore/demo/`.
"""

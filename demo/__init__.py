"""`make demo`: 3,000 mails through real processes, one worker killed on the way, and a proof that none was lost.

    mails.jsonl     the mails; made once by make_mails.py
    smtp_server     the mail server, a process that writes down what it accepts before it says so
    processes       starting and ending everything, by pid
    verdict         what the server must hold, and what it holds instead; pure
    show            progress and summary
    __main__        the play: start, insert, watch, kill, judge, clean up

Everything it writes is in `.wqcore/demo/`.
"""

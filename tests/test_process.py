def test_prepare_keeps_what_the_user_has_set(run_python):
    code = (
        "import os, sys; from jointmae import process; process.prepare(); "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    assert run_python(code, OMP_WAIT_POLICY="ACTIVE").stdout.split() == ["ACTIVE", "False"]
    assert run_python(f"import os; os.environ.pop('OMP_WAIT_POLICY', None); {code}").stdout.split() == [
        "PASSIVE",
        "False",
    ]

from calmlflow.cli.training import predict
from calmlflow.console import script

if __name__ == "__main__":
    script(predict)

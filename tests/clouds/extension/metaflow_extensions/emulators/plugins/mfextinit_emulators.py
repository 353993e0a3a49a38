AZURE_CLIENT_PROVIDERS_DESC = [("azurite", ".credentials.Azurite")]
GCP_CLIENT_PROVIDERS_DESC = [("fake-gcs", ".credentials.FakeGcs")]
